import numpy as np
import pytest
import torch

from mlcd_core.errors import ConfigError
from mlcd_core.kmeans.shortlist import Shortlist, best_of, float32_dot_error, pair_dots
from mlcd_core.kmeans.tile_search import TileSearch
from tests.unit.kmeans import oracle

PRECISIONS = ["int8", "bfloat16", "float32"]


def needs(precision):
    if precision == "int8" and not torch.cpu._is_vnni_supported():
        pytest.skip("int8 products are exact only on CPUs with VNNI")


def tight_blob(num_rows, dim, seed):
    """Unit rows close to one direction: scores differ by less than the rounding of int8."""
    return oracle.blobs(num_rows, dim, 1, seed=seed, noise=0.6).astype(np.float64)


def problem(kind, dim, num_rows=40, num_centroids=1000):
    if kind == "tight":
        both = tight_blob(num_rows + num_centroids, dim, seed=0)
        rows, centroids = both[:num_rows], both[num_rows:]
    elif kind == "sparse":
        # one large element each, so that a common step would lose all others
        rows, centroids = np.random.default_rng(1).standard_normal((2, num_centroids, dim)) * 0.05
        rows = rows[:num_rows]
        rows[:, 0], centroids[:, -1] = 1.0, 1.0
    else:
        rows = oracle.blobs(num_rows, dim, 8, seed=2).astype(np.float64)
        centroids = oracle.blobs(num_centroids, dim, 8, seed=3).astype(np.float64)
    return torch.from_numpy(oracle.normalised_rows(rows)), torch.from_numpy(oracle.on_grid(centroids))


def rows_of(shortlist, row):
    return shortlist.ids_P[shortlist.offsets_B1[row] : shortlist.offsets_B1[row + 1]]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["blobs", "tight", "sparse"])
@pytest.mark.parametrize("dim", [2, 65, 700])
@pytest.mark.parametrize("num_labels", [1, 16])
@pytest.mark.parametrize("tile_centroids", [64, 8192])
def test_no_centroid_left_out_exceeds_the_ceiling(precision, kind, dim, num_labels, tile_centroids):
    needs(precision)
    points_ND, centroids_KD = problem(kind, dim)
    found = TileSearch(centroids_KD, precision, tile_centroids).propose(points_ND, num_labels)
    # the check below says something: candidates were chosen, under a ceiling
    assert (found.ceiling_B.isfinite() & (found.counts_B < len(centroids_KD))).double().mean() > 0.1
    exact_NK = oracle.scores_in_steps(points_ND.numpy(), centroids_KD.numpy()) / oracle.STEPS**2
    for row in range(len(points_ND)):
        ids = rows_of(found, row).numpy()
        assert len(ids) == len(np.unique(ids))
        left = np.delete(exact_NK[row], ids)
        assert len(left) == 0 or left.max() <= found.ceiling_B[row]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_most_rows_are_settled_by_few_candidates(precision):
    needs(precision)
    points_ND, centroids_KD = problem("blobs", 128, num_rows=200, num_centroids=1000)
    found = TileSearch(centroids_KD, precision).propose(points_ND, 4)
    cosines_NL = best_of(points_ND, centroids_KD, found, 4)[1]
    settled_N = cosines_NL[:, -1] > found.ceiling_B
    assert settled_N.double().mean() > 0.95
    assert found.counts_B.double().mean() < 40


def test_rows_with_too_many_candidates_get_none_and_no_ceiling():
    points_ND, centroids_KD = problem("tight", 16, num_centroids=500)
    found = TileSearch(centroids_KD[:1].expand(500, -1).contiguous(), "float32").propose(points_ND, 1)
    assert (found.counts_B == 0).all()
    assert (found.ceiling_B == torch.inf).all()


@pytest.mark.parametrize("dim", [1, 64, 700])
def test_float32_dots_are_off_by_less_than_their_bound(dim):
    points_ND, centroids_KD = problem("tight", dim)
    error_NK = (points_ND.float() @ centroids_KD.T).double() - points_ND.double() @ centroids_KD.double().T
    assert error_NK.abs().max() <= float32_dot_error(dim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pair_dots_are_those_of_the_pairs(dtype):
    rows_BD, table_KD = torch.randn(3, 5, dtype=dtype), torch.randn(7, 5, dtype=dtype)
    pairs = Shortlist(torch.tensor([0, 2, 2, 5]), torch.tensor([1, 6, 0, 2, 3]), torch.zeros(3))
    dots_BK = rows_BD @ table_KD.T
    expected_P = torch.stack([dots_BK[row, k] for row, k in [(0, 1), (0, 6), (2, 0), (2, 2), (2, 3)]])
    assert torch.allclose(pair_dots(rows_BD, table_KD, pairs), expected_P)


def test_int8_without_exact_products_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ConfigError, match="VNNI"):
        TileSearch(torch.eye(4), "int8")


def test_float16_sums_on_the_cpu_are_refused():
    with pytest.raises(ConfigError, match="runs on cuda alone"):
        TileSearch(torch.eye(4), "float16")


def test_settings_of_products_are_left_as_they_were():
    points_ND, centroids_KD = problem("blobs", 8)
    TileSearch(centroids_KD, "float32").propose(points_ND, 1)
    assert torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
