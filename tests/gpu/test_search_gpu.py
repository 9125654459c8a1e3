"""The search backends on CUDA: `python -m pytest tests/gpu` on a machine with a GPU."""

import pytest
import torch

from mlcd_core.kmeans.faiss_search import FaissSearch
from mlcd_core.kmeans.triton_search import SPLIT_CENTROIDS, TritonSearch
from tests.unit.kmeans.search_checks import assert_sound, problem

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("dim", [1, 7, 64, 96, 256, 768, 1024])
@pytest.mark.parametrize("kind", ["random", "duplicate", "tied", "constant"])
def test_triton_is_sound_for_any_dims_and_data(kind, dim):
    points_ND, centroids_KD = problem(kind, 150, 300, dim)
    for num_labels, spare in [(1, 0), (1, 1), (4, 12), (4, 13)]:
        search = TritonSearch(torch.from_numpy(centroids_KD), "cuda", spare=spare)
        assert_sound(search, points_ND, centroids_KD, num_labels, device="cuda")


@pytest.mark.parametrize("num_centroids", [1, 17, 255, 256, 257, 3 * SPLIT_CENTROIDS + 1])
@pytest.mark.parametrize("num_rows", [0, 1, 129])
def test_triton_is_sound_for_ragged_tiles_and_splits(num_rows, num_centroids):
    points_ND, centroids_KD = problem("random", max(1, num_rows), num_centroids, 24)
    search = TritonSearch(torch.from_numpy(centroids_KD), "cuda", spare=1)
    assert_sound(search, points_ND[:num_rows], centroids_KD, 2, device="cuda")


def test_rows_in_host_memory_get_their_lists_there():
    points_ND, centroids_KD = problem("random", 20, 100, 32)
    assert_sound(TritonSearch(torch.from_numpy(centroids_KD), "cuda"), points_ND, centroids_KD, 2, device="cpu")


def test_more_rows_or_centroids_do_not_compile_again():
    from mlcd_core.kmeans import triton_search

    compiled = triton_search._search_kernel.fn.device_caches[torch.cuda.current_device()][0]
    sizes = []
    for num_rows, num_centroids in [(16, 256), (17, 257), (300, 1), (31, 1000)]:
        points_ND, centroids_KD = problem("random", num_rows, max(3, num_centroids), 40)
        TritonSearch(torch.from_numpy(centroids_KD), "cuda").propose(torch.from_numpy(points_ND).cuda(), 1)
        sizes.append(len(compiled))
    assert sizes[1:] == sizes[:-1]


@pytest.mark.parametrize("kind", ["random", "duplicate", "tied", "constant"])
def test_faiss_is_sound(kind):
    faiss = pytest.importorskip("faiss")
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("faiss without GPU support")
    points_ND, centroids_KD = problem(kind, 50, 300, 96)
    search = FaissSearch(torch.from_numpy(centroids_KD), "cuda", spare=4)
    assert_sound(search, points_ND, centroids_KD, 3, device="cuda")
