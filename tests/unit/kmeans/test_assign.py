import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcd_core.errors import ConfigError, DataError
from mlcd_core.kmeans import ArrayPoints, nearest_centroids
from mlcd_core.kmeans.assign import Assigner
from tests.unit.kmeans import oracle
from tests.unit.kmeans.test_tile_search import needs


def assert_equals_oracle(points_ND, centroids_KD, num_labels, **tiles):
    found = nearest_centroids(ArrayPoints(points_ND), centroids_KD, num_labels=num_labels, **tiles)
    ids_NL, cosines_NL = oracle.top_labels(points_ND, centroids_KD, num_labels)
    assert found.ids_NL.dtype == torch.int32
    assert found.scores_NL.dtype == torch.float32
    assert np.array_equal(found.ids_NL.numpy(), ids_NL)
    assert np.array_equal(found.cosines_NL.numpy(), cosines_NL)
    assert np.array_equal(found.scores_NL.numpy(), cosines_NL.astype(np.float32))
    return found


@st.composite
def crowded_problems(draw):
    """Few directions on a coarse lattice: duplicates, exact ties and near ties everywhere."""
    dim = draw(st.integers(1, 6))
    element = st.integers(-2, 2)
    vector = st.lists(element, min_size=dim, max_size=dim).filter(any)
    points = np.array(draw(st.lists(vector, min_size=1, max_size=8)), dtype=np.float64)
    centroids = np.array(draw(st.lists(vector, min_size=1, max_size=60)), dtype=np.float64)
    # some centroids move by single grid steps, far below what float32 can tell apart
    nudges = draw(st.lists(st.integers(-3, 3), min_size=len(centroids), max_size=len(centroids)))
    centroids_KD = oracle.on_grid(centroids)
    centroids_KD[:, 0] += (np.array(nudges) * (dim > 1) / 2.0**24).astype(np.float32) * (np.abs(centroids_KD[:, 0]) < 1)
    return oracle.normalised_rows(points), centroids_KD, draw(st.integers(1, len(centroids)))


@settings(max_examples=150, deadline=None)
@given(crowded_problems(), st.integers(1, 9), st.integers(1, 70))
def test_ties_and_duplicates_in_any_tiles_equal_the_oracle(problem, tile_rows, tile_centroids):
    points_ND, centroids_KD, num_labels = problem
    found = nearest_centroids(
        points_ND,
        torch.from_numpy(centroids_KD),
        num_labels=num_labels,
        tile_rows=tile_rows,
        tile_centroids=tile_centroids,
    )
    # a nudge may leave the tolerance for unit rows, then the grid version is what was searched
    ids_NL, cosines_NL = oracle.top_labels(points_ND, grid(centroids_KD), num_labels)
    assert np.array_equal(found.ids_NL.numpy(), ids_NL)
    assert np.array_equal(found.cosines_NL.numpy(), cosines_NL)


def grid(centroids_KD):
    from mlcd_core.kmeans.centroids import centroids_on_grid

    return centroids_on_grid(centroids_KD).numpy()


@pytest.mark.parametrize("dim", [1, 3, 64, 129])
@pytest.mark.parametrize("num_labels", [1, 2, 16])
def test_random_rows_equal_the_oracle(dim, num_labels):
    points_ND = oracle.normalised_rows(oracle.blobs(60, dim, 5, seed=dim))
    centroids_KD = oracle.on_grid(oracle.blobs(90, dim, 5, seed=dim + 1).astype(np.float64))
    assert_equals_oracle(points_ND, centroids_KD, num_labels)


@pytest.mark.parametrize("num_centroids", [511, 512, 1100])
def test_many_centroids_in_groups_and_tiles_equal_the_oracle(num_centroids):
    points_ND = oracle.normalised_rows(oracle.blobs(40, 5, 5, seed=0))
    centroids_KD = oracle.on_grid(oracle.blobs(num_centroids, 5, 5, seed=1).astype(np.float64))
    centroids_KD[64:128] = centroids_KD[:64]
    for tile_centroids in (512, 2048):
        assert_equals_oracle(points_ND, centroids_KD, 1, tile_centroids=tile_centroids)
        assert_equals_oracle(points_ND, centroids_KD, 3, tile_centroids=tile_centroids)


def test_more_twins_than_candidates_are_settled_by_the_float64_pass():
    points_ND = oracle.normalised_rows(oracle.blobs(10, 8, 3, seed=0))
    centroids_KD = oracle.on_grid(np.repeat(oracle.blobs(3, 8, 3, seed=1), 120, axis=0).astype(np.float64))
    found = assert_equals_oracle(points_ND, centroids_KD, 2, tile_centroids=32)
    assert found.num_exhaustive == 10


@pytest.mark.parametrize("search", ["int8", "bfloat16", "float32", "faiss", "triton"])
@pytest.mark.parametrize(("num_centroids", "num_labels"), [(1, 1), (31, 4), (33, 16), (700, 1), (700, 16)])
def test_every_search_gives_the_oracle(search, num_centroids, num_labels):
    needs(search)
    points_ND = torch.from_numpy(oracle.normalised_rows(oracle.blobs(50, 37, 6, seed=8)))
    centroids_KD = torch.from_numpy(oracle.on_grid(oracle.blobs(num_centroids, 37, 6, seed=9).astype(np.float64)))
    found = Assigner(centroids_KD, num_labels=num_labels, search=search, tile_centroids=256).nearest(points_ND)
    ids_NL, cosines_NL = oracle.top_labels(points_ND.numpy(), centroids_KD.numpy(), num_labels)
    assert np.array_equal(found.ids_NL.numpy(), ids_NL)
    assert np.array_equal(found.cosines_NL.numpy(), cosines_NL)


@pytest.mark.parametrize("num_centroids", [330, 400, 511])
def test_fewer_groups_than_labels_need_no_pass_over_all_centroids(num_centroids):
    points_ND = oracle.normalised_rows(oracle.blobs(20, 24, 6, seed=3))
    centroids_KD = oracle.on_grid(oracle.blobs(num_centroids, 24, 6, seed=4).astype(np.float64))
    assert assert_equals_oracle(points_ND, centroids_KD, 16).num_exhaustive == 0


@pytest.mark.parametrize("num_labels", [1, 5, 39, 40])
def test_any_tiles_and_thread_counts_give_the_same_bits(num_labels):
    points = ArrayPoints(oracle.blobs(50, 24, 6, seed=3))
    centroids_KD = oracle.on_grid(oracle.blobs(40, 24, 6, seed=4).astype(np.float64))
    expected = nearest_centroids(points, centroids_KD, num_labels=num_labels)
    threads = torch.get_num_threads()
    try:
        for tile_rows, tile_centroids, num_threads in [(1, 1, 1), (7, 3, 2), (64, 40, 2), (20, 17, 1)]:
            torch.set_num_threads(num_threads)
            found = nearest_centroids(
                points, centroids_KD, num_labels=num_labels, tile_rows=tile_rows, tile_centroids=tile_centroids
            )
            assert torch.equal(found.ids_NL, expected.ids_NL)
            assert torch.equal(found.cosines_NL, expected.cosines_NL)
    finally:
        torch.set_num_threads(threads)


def test_float32_inputs_are_normalised_first():
    rows_ND, centers_KD = oracle.blobs(30, 6, 3, seed=5), oracle.blobs(8, 6, 3, seed=6)
    found = nearest_centroids(rows_ND, centers_KD, num_labels=3)
    ids_NL, _ = oracle.top_labels(oracle.normalised_rows(rows_ND), oracle.on_grid(centers_KD.astype(np.float64)), 3)
    assert np.array_equal(found.ids_NL.numpy(), ids_NL)


def test_no_rows_give_no_labels():
    found = nearest_centroids(np.zeros((0, 4), np.float32), np.eye(4, dtype=np.float32), num_labels=2)
    assert found.ids_NL.shape == found.scores_NL.shape == (0, 2)


@pytest.mark.parametrize("num_labels", [0, 5])
def test_labels_beyond_the_centroids_are_an_error_with_the_fix(num_labels):
    with pytest.raises(ConfigError, match=r"expected 1 to 4: set label.num_labels <= 4"):
        nearest_centroids(np.eye(4), np.eye(4), num_labels=num_labels)


def test_other_dims_and_bad_centroids_are_errors():
    with pytest.raises(DataError, match="4 dims, centroids 3"):
        nearest_centroids(np.eye(4), np.eye(3), num_labels=1)
    with pytest.raises(DataError, match="centroid 1 holds only zeros"):
        nearest_centroids(np.eye(2), np.array([[1.0, 0.0], [0.0, 0.0]]), num_labels=1)
    with pytest.raises(DataError, match="no centroids"):
        nearest_centroids(np.eye(2), np.zeros((0, 2)), num_labels=1)


def test_lowered_float32_precision_is_refused():
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(ConfigError, match="highest"):
            nearest_centroids(np.eye(4), np.eye(4), num_labels=1)
    finally:
        torch.set_float32_matmul_precision("highest")
