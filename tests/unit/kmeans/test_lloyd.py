import numpy as np
import pytest
import torch

from mlcd_core.errors import ConfigError, TooFewRowsError
from mlcd_core.kmeans import ArrayPoints, CentroidState, ClusterSpec, fit, nearest_centroids
from mlcd_core.kmeans.recipes import is_converged
from tests.unit.kmeans import oracle


def spec(num_centroids=None, iterations=6, tolerance=0.0, seed=0):
    return ClusterSpec(num_centroids=num_centroids, iterations=iterations, tolerance=tolerance, seed=seed)


def assert_same(found, expected):
    assert torch.equal(found.centroids_KD, expected.centroids_KD)
    assert torch.equal(found.counts_K, expected.counts_K)
    assert (found.objective, found.splits) == (expected.objective, expected.splits)
    assert found.converged == expected.converged
    assert found.state.to_arrow_bytes() == expected.state.to_arrow_bytes()


@pytest.mark.parametrize(("dim", "num_centroids", "noise"), [(1, 2, 0.5), (3, 7, 0.5), (8, 20, 0.02), (17, 12, 1.0)])
def test_whole_run_equals_the_oracle(dim, num_centroids, noise):
    points_ND = oracle.normalised_rows(oracle.blobs(150, dim, 5, seed=dim, noise=noise))
    clustering = fit(ArrayPoints(points_ND), spec(num_centroids, iterations=5))
    start_KD = oracle.hash_ranked_start(points_ND, list(range(150)), num_centroids, seed=0)
    centroids_KD, objective, counts_K, splits = oracle.lloyd(points_ND, start_KD, iterations=5)
    assert np.array_equal(clustering.centroids_KD.numpy(), centroids_KD)
    assert clustering.objective == pytest.approx(objective, rel=0, abs=1e-14)
    assert np.array_equal(clustering.counts_K.numpy(), counts_K)
    assert clustering.splits == tuple(splits)


def test_empty_clusters_of_a_given_start_are_split_like_the_oracle():
    points_ND = oracle.normalised_rows(oracle.blobs(80, 6, 4, seed=0))
    start_KD = oracle.on_grid(np.repeat(oracle.blobs(2, 6, 2, seed=1), 5, axis=0).astype(np.float64))
    clustering = fit(ArrayPoints(points_ND), spec(10), init_KD=start_KD)
    centroids_KD, objective, _, splits = oracle.lloyd(points_ND, start_KD, iterations=6)
    assert np.array_equal(clustering.centroids_KD.numpy(), centroids_KD)
    assert clustering.objective == pytest.approx(objective, rel=0, abs=1e-14)
    assert clustering.splits == tuple(splits)
    assert splits[0] == 8


def test_objective_falls_and_counts_add_up():
    clustering = fit(ArrayPoints(oracle.blobs(600, 16, 12, seed=1)), spec(12, iterations=10))
    assert list(clustering.objective) == sorted(clustering.objective, reverse=True)
    assert int(clustering.counts_K.sum()) == 600
    assert clustering.centroids_KD.dtype == torch.float32
    assert clustering.counts_K.dtype == torch.int64


def test_row_order_tiles_and_threads_do_not_change_a_bit():
    rows_ND = oracle.blobs(400, 12, 9, seed=2)
    expected = fit(ArrayPoints(rows_ND), spec(25))
    order = np.random.default_rng(0).permutation(400)
    assert_same(fit(ArrayPoints(rows_ND[order], row_ids=order), spec(25)), expected)
    for tile_rows, block_rows in ((3, 400), (37, 50), (4096, 7)):
        assert_same(fit(ArrayPoints(rows_ND, block_rows=block_rows), spec(25), tile_rows=tile_rows), expected)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert_same(fit(ArrayPoints(rows_ND), spec(25)), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("tolerance", [0.0, 1e-2])
def test_resume_after_any_iteration_equals_the_undisturbed_run(tolerance):
    points = ArrayPoints(oracle.blobs(300, 8, 6, seed=3))
    saved = []
    expected = fit(points, spec(15, 8, tolerance), on_iteration=lambda state: saved.append(state.to_arrow_bytes()))
    assert len(saved) == expected.iterations
    for data in saved:
        resumed_saved = []
        state = CentroidState.from_arrow_bytes(data)
        resumed = fit(
            points,
            spec(15, 8, tolerance),
            resume=state,
            on_iteration=lambda state, kept=resumed_saved: kept.append(state.to_arrow_bytes()),
        )
        assert_same(resumed, expected)
        assert resumed_saved == saved[state.iteration :]


def test_tolerance_stops_early_and_zero_runs_all_iterations():
    points = ArrayPoints(oracle.blobs(300, 8, 6, seed=3))
    stopped = fit(points, spec(15, 50, 1e-2))
    assert stopped.converged
    assert 2 <= stopped.iterations < 50
    full = fit(points, spec(15, 50, 0.0))
    assert full.iterations == 50
    assert not full.converged
    assert full.objective[-1] == full.objective[-2]
    assert full.objective[: stopped.iterations] == stopped.objective


@pytest.mark.parametrize(
    ("objective", "tolerance", "expected"),
    [
        ((0.5,), 1e-2, False),
        ((0.5, 0.4), 1e-2, False),
        ((0.5, 0.4, 0.399), 1e-2, True),
        ((0.4, 0.5), 1e-2, False),
        ((0.4, 0.4), 0.0, False),
        ((0.0, 0.0), 1e-4, True),
    ],
)
def test_stop_rule(objective, tolerance, expected):
    assert is_converged(objective, tolerance) is expected


def test_changed_share_is_reported_when_known():
    points, events = ArrayPoints(oracle.blobs(300, 8, 6, seed=3)), []
    clustering = fit(points, spec(15, 4), report=lambda event, values: events.append((event, dict(values))))
    assert [values["iteration"] for _, values in events] == [1, 2, 3, 4]
    assert [values["objective"] for _, values in events] == list(clustering.objective)
    assert [values["changed_share"] for _, values in events] == list(clustering.changed_shares)
    assert clustering.changed_shares[0] is None
    labels = [nearest_centroids(points, fit(points, spec(15, n)).centroids_KD, num_labels=1).ids_NL for n in (1, 2)]
    assert clustering.changed_shares[2] == float((labels[0] != labels[1]).double().mean())


def test_one_centroid_is_the_mean_direction():
    rows_ND = oracle.normalised_rows(oracle.blobs(50, 5, 3, seed=0))
    clustering = fit(ArrayPoints(rows_ND), spec(1, 3))
    expected_KD = oracle.on_grid(rows_ND.astype(np.float64).sum(axis=0, keepdims=True))
    assert np.array_equal(clustering.centroids_KD.numpy(), expected_KD)
    assert clustering.counts_K.tolist() == [50]


def test_opposite_rows_keep_a_single_centroid_where_it_started():
    clustering = fit(ArrayPoints(np.array([[1.0, 0.0], [-1.0, 0.0]] * 4)), spec(1, 3))
    assert clustering.centroids_KD.abs().tolist() == [[1.0, 0.0]]
    assert clustering.objective == (1.0, 1.0, 1.0)


def test_one_dimension_knows_two_directions():
    clustering = fit(ArrayPoints(np.array([[2.0], [-3.0], [0.5], [1.0]] * 3)), spec(2, 3))
    assert sorted(clustering.centroids_KD[:, 0].tolist()) == [-1.0, 1.0]
    assert clustering.objective[-1] == 0.0


def test_duplicates_only_are_an_error_but_cluster_from_a_given_start():
    points = ArrayPoints(np.tile(np.array([[1.0, 2.0, 3.0]]), (40, 1)))
    with pytest.raises(TooFewRowsError, match="only 1 are distinct"):
        fit(points, spec(4))
    clustering = fit(points, spec(4), init_KD=oracle.blobs(4, 3, 4, seed=0))
    assert int(clustering.counts_K.sum()) == 40
    assert clustering.objective[-1] < 1e-3


def test_num_centroids_follow_the_rows():
    clustering = fit(ArrayPoints(oracle.blobs(95, 4, 3, seed=0)), ClusterSpec(rows_per_centroid=10, iterations=2))
    assert len(clustering.centroids_KD) == 9


def test_states_and_starts_that_do_not_fit_are_errors():
    points = ArrayPoints(oracle.blobs(100, 4, 3, seed=0))
    state = fit(points, spec(5)).state
    for other in (ArrayPoints(oracle.blobs(101, 4, 3, seed=0)), ArrayPoints(oracle.blobs(100, 5, 3, seed=0))):
        with pytest.raises(ConfigError, match="start without resume"):
            fit(other, spec(5), resume=state)
    with pytest.raises(ConfigError, match=r"num_centroids to 6"):
        fit(points, spec(5), init_KD=oracle.blobs(6, 4, 3, seed=0))


@pytest.mark.parametrize(("dim", "num_centroids"), [(16, 40), (48, 100)])
def test_objective_is_within_a_twentieth_of_a_percent_of_faiss(dim, num_centroids):
    faiss = pytest.importorskip("faiss")
    points = ArrayPoints(oracle.blobs(3000, dim, 30, seed=dim, noise=1.0))
    rows_ND = points.points_ND.float().numpy()
    start_KD = rows_ND[:num_centroids].copy()
    clustering = fit(points, spec(num_centroids, 10), init_KD=start_KD)
    # a negative threshold turns off the early stop, whose float32 objective cannot be trusted
    reference = faiss.Kmeans(
        dim, num_centroids, niter=10, spherical=True, max_points_per_centroid=10**6, early_stop_threshold=-1.0
    )
    reference.train(rows_ND, init_centroids=start_KD)
    ours, theirs = (objective64(rows_ND, centroids) for centroids in (clustering.centroids_KD, reference.centroids))
    assert ours <= theirs * 1.0005


def objective64(rows_ND, centroids_KD):
    centroids_KD = np.asarray(centroids_KD, np.float64)
    centroids_KD = centroids_KD / np.linalg.norm(centroids_KD, axis=1, keepdims=True)
    return float(np.mean(1 - (rows_ND.astype(np.float64) @ centroids_KD.T).max(axis=1)))
