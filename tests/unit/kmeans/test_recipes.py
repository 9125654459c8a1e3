import functools
import itertools

import numpy as np
import pytest
import torch

from mlcd_core.kmeans import ArrayPoints, CentroidState, ClusterSpec, PartialSums, Saving, fit
from mlcd_core.kmeans.recipes import Recipe
from tests.unit.kmeans import oracle

ROWS_ND = oracle.normalised_rows(oracle.blobs(400, 10, 12, seed=0, noise=0.4))
POINTS = ArrayPoints(ROWS_ND, block_rows=30)
CHEAP = {
    "sample": {"recipe": "sample", "sample_rows": 5},
    "fast": {"recipe": "fast", "probes": 1},
    "hierarchical": {"recipe": "hierarchical", "slices": 3},
}


def spec(recipe, num_centroids=30, iterations=6, tolerance=0.0, final_iterations=2, **fields):
    return ClusterSpec(
        num_centroids=num_centroids,
        iterations=iterations,
        tolerance=tolerance,
        final_iterations=final_iterations,
        **{**CHEAP.get(recipe, {"recipe": recipe}), **fields},
    )


def events_of(points, run_spec, **options):
    events = []
    clustering = fit(points, run_spec, report=lambda event, values: events.append((event, dict(values))), **options)
    return clustering, [values for event, values in events if event == "cluster.iteration"]


def sampled_ids(target, num_rows, seed, times=1):
    return [n for n in range(num_rows) if oracle.splitmix64(seed, n) < times * (2**63 * target // num_rows)]


def test_sample_is_lloyd_on_the_sampled_rows_then_on_all():
    found, events = events_of(POINTS, spec("sample"))
    kept = sampled_ids(5 * 30, 400, seed=0)
    start_KD = oracle.hash_ranked_start(ROWS_ND, list(range(400)), 30, seed=0)
    sampled_KD, objective, _, splits = oracle.lloyd(ROWS_ND[kept], start_KD, iterations=4)
    centroids_KD, last_objective, counts_K, last_splits = oracle.lloyd(ROWS_ND, sampled_KD, iterations=2)
    assert np.array_equal(found.centroids_KD.numpy(), centroids_KD)
    assert np.array_equal(found.counts_K.numpy(), counts_K)
    assert found.objective == pytest.approx(objective + last_objective, rel=0, abs=1e-14)
    assert found.splits == tuple(splits + last_splits)
    assert [event["used_rows"] for event in events] == [len(kept)] * 4 + [400] * 2
    # rows whose cluster before is not known: all of the first pass, and of the first over all rows
    assert [share is None for share in found.changed_shares] == [True, False, False, False, True, False]


def test_sample_of_all_rows_is_exact():
    exact = fit(POINTS, spec("exact"))
    assert fit(POINTS, spec("sample", sample_rows=14)).state.to_arrow_bytes() == exact.state.to_arrow_bytes()
    assert fit(POINTS, spec("sample", sample_rows=13)).state.to_arrow_bytes() != exact.state.to_arrow_bytes()


def test_sample_of_too_few_rows_is_doubled_until_each_cluster_can_have_one():
    seed = next(seed for seed in itertools.count() if len(sampled_ids(4, 400, seed)) < 1)
    times = next(times for times in (2, 4, 8, 16) if len(sampled_ids(4, 400, seed, times)) >= 1)
    _, events = events_of(POINTS, spec("sample", num_centroids=1, sample_rows=4, seed=seed))
    assert events[0]["used_rows"] == len(sampled_ids(4, 400, seed, times))


@pytest.mark.parametrize(("num_centroids", "dim"), [(1, 3), (3, 3), (20, 8), (60, 17)])
def test_fast_with_all_groups_is_exact_bit_for_bit(num_centroids, dim):
    points = ArrayPoints(oracle.blobs(300, dim, 9, seed=dim), block_rows=70)
    found, events = events_of(points, spec("fast", num_centroids, probes=10**6))
    exact = fit(points, spec("exact", num_centroids))
    assert found.state.to_arrow_bytes() == exact.state.to_arrow_bytes()
    assert [event["recall"] for event in events] == [1.0] * 4 + [None] * 2


def test_fast_reports_how_often_it_misses_on_rows_that_are_no_start():
    rows_ND = oracle.blobs(3000, 12, 40, seed=1, noise=1.0)
    _, events = events_of(ArrayPoints(rows_ND), spec("fast", num_centroids=100))
    recalls = [event["recall"] for event in events[:4]]
    assert all(0.2 < recall < 1 for recall in recalls)
    _, more = events_of(ArrayPoints(rows_ND), spec("fast", num_centroids=100, probes=5))
    assert all(event["recall"] > recall for event, recall in zip(more, recalls, strict=False))


@pytest.mark.parametrize("recipe", ["sample", "fast"])
def test_as_many_final_iterations_as_there_are_is_exact(recipe):
    exact = fit(POINTS, spec("exact", iterations=3))
    for final_iterations in (3, 9):
        found = fit(POINTS, spec(recipe, iterations=3, final_iterations=final_iterations))
        assert found.state.to_arrow_bytes() == exact.state.to_arrow_bytes()


@pytest.mark.parametrize("recipe", CHEAP)
def test_counts_and_last_objective_are_those_of_all_rows(recipe):
    saved = []
    found = fit(POINTS, spec(recipe), on_iteration=saved.append)
    before_KD = saved[-2].centroids_KD.numpy()
    ids_N1, cosines_N1 = oracle.top_labels(ROWS_ND, before_KD, 1)
    assert found.counts_K.tolist() == np.bincount(ids_N1[:, 0], minlength=30).tolist()
    assert found.objective[-1] == pytest.approx(1 - float(cosines_N1.mean()), abs=1e-12)


@pytest.mark.parametrize("tolerance", [0.0, 0.05])
@pytest.mark.parametrize("recipe", ["sample", "fast"])
def test_resume_after_any_iteration_equals_the_undisturbed_run(recipe, tolerance):
    run_spec, saved = spec(recipe, iterations=10, tolerance=tolerance), []
    expected = fit(POINTS, run_spec, on_iteration=lambda state: saved.append(state.to_arrow_bytes()))
    assert len(saved) == expected.iterations
    assert (expected.iterations < 10) == (tolerance > 0)
    for data in saved:
        again = []
        state = CentroidState.from_arrow_bytes(data)
        found = fit(
            POINTS, run_spec, resume=state, on_iteration=lambda state, again=again: again.append(state.to_arrow_bytes())
        )
        assert again == saved[state.iteration :]
        assert found.converged == expected.converged


@pytest.mark.parametrize("recipe", ["sample", "fast"])
def test_stop_inside_an_iteration_keeps_its_sums_and_its_recall(recipe):
    expected, events = events_of(POINTS, spec(recipe))
    saved, clock = [], itertools.count()
    saving = Saving(
        on_partial=lambda state, partial: saved.append((state, partial.to_arrow_bytes())),
        save_seconds=3,
        clock=clock.__next__,
    )
    fit(POINTS, spec(recipe), saving=saving)
    assert len(saved) > 12
    for state, data in saved:
        saving = Saving(read_partial=functools.partial(PartialSums.from_arrow_bytes, data))
        found, more = events_of(POINTS, spec(recipe), resume=state, saving=saving)
        assert found.state.to_arrow_bytes() == expected.state.to_arrow_bytes()
        assert [event["recall"] for event in more] == [event["recall"] for event in events[state.iteration :]]


@pytest.mark.parametrize("recipe", CHEAP)
def test_row_order_and_tiles_do_not_change_a_bit(recipe):
    expected = fit(POINTS, spec(recipe)).state.to_arrow_bytes()
    assert fit(POINTS, spec(recipe), tile_rows=7).state.to_arrow_bytes() == expected
    if recipe != "hierarchical":  # whose slices are made of blocks
        order = np.random.default_rng(0).permutation(400)
        points = ArrayPoints(ROWS_ND[order], row_ids=order)
        assert fit(points, spec(recipe)).state.to_arrow_bytes() == expected


@pytest.mark.parametrize("recipe", CHEAP)
def test_objective_is_near_that_of_exact_on_blobs(recipe):
    points = ArrayPoints(oracle.blobs(2000, 16, 40, seed=2, noise=0.5), block_rows=100)
    exact = fit(points, spec("exact", 60, iterations=12)).objective[-1]
    found = fit(points, spec(recipe, 60, iterations=12, probes=3, sample_rows=12)).objective[-1]
    assert found < 1.1 * exact


@pytest.mark.parametrize(
    ("objective", "num_cheap", "is_over", "has_converged"),
    [
        ((), 6, False, False),
        ((0.5, 0.4, 0.3, 0.25, 0.2, 0.18), 6, False, False),
        ((0.5, 0.4, 0.3, 0.25, 0.2, 0.18, 0.19), 6, False, False),
        ((0.5, 0.4, 0.3, 0.25, 0.2, 0.18, 0.19, 0.17), 6, True, False),
        ((0.5, 0.4, 0.399), 3, False, True),
        # the first objective over all rows is not compared with one over a sample
        ((0.5, 0.4, 0.399, 0.399), 3, False, True),
        ((0.5, 0.4, 0.399, 0.45, 0.42), 3, True, True),
    ],
)
def test_exact_iterations_follow_when_the_cheap_ones_converge_or_are_done(objective, num_cheap, is_over, has_converged):
    recipe = Recipe(spec("sample", iterations=8, tolerance=1e-2), num_rows=400, most_cheap=6, most_exact=2)
    assert recipe.num_cheap(objective) == num_cheap
    assert recipe.is_over(objective) is is_over
    assert recipe.has_converged(objective) is has_converged


def test_threads_do_not_change_a_bit():
    expected = [fit(POINTS, spec(recipe)).state.to_arrow_bytes() for recipe in CHEAP]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert [fit(POINTS, spec(recipe)).state.to_arrow_bytes() for recipe in CHEAP] == expected
    finally:
        torch.set_num_threads(threads)
