import sys

import pytest
import torch

from mlcd_core.errors import ConfigError
from mlcd_core.kmeans.faiss_search import FaissSearch
from tests.unit.kmeans import oracle
from tests.unit.kmeans.search_checks import assert_sound, problem

pytest.importorskip("faiss")


@pytest.mark.parametrize("num_rows", [1, 50])  # faiss multiplies fewer than 20 rows in another way
@pytest.mark.parametrize("dim", [1, 7, 96, 1024])
@pytest.mark.parametrize("kind", ["random", "duplicate", "tied", "constant"])
def test_any_dims_and_data_are_sound(kind, dim, num_rows):
    points_ND, centroids_KD = problem(kind, num_rows, 70, dim)
    assert_sound(FaissSearch(torch.from_numpy(centroids_KD), "cpu"), points_ND, centroids_KD, 1)
    assert_sound(FaissSearch(torch.from_numpy(centroids_KD), "cpu", spare=13), points_ND, centroids_KD, 4)


@pytest.mark.parametrize("num_labels", [1, 5, 16, 40])
def test_the_certified_labels_of_random_rows_are_the_exact_ones(num_labels):
    points_ND, centroids_KD = problem("random", 60, 300, 64)
    search = FaissSearch(torch.from_numpy(centroids_KD), "cpu", spare=4)
    assert assert_sound(search, points_ND, centroids_KD, num_labels) == 1


@pytest.mark.parametrize("num_centroids", [1, 2, 16])
def test_fewer_centroids_than_candidates_are_all_proposed(num_centroids):
    points_ND, centroids_KD = problem("random", 5, num_centroids, 8)
    search = FaissSearch(torch.from_numpy(centroids_KD), "cpu", spare=20)
    assert assert_sound(search, points_ND, centroids_KD, 1) == 1
    assert_sound(search, points_ND[:0], centroids_KD, 1)


def test_faiss_agrees_with_the_exact_path():
    from mlcd_core.kmeans import nearest_centroids

    points_ND, centroids_KD = problem("random", 80, 150, 32)
    found = FaissSearch(torch.from_numpy(centroids_KD), "cpu", spare=0).propose(torch.from_numpy(points_ND), 3)
    exact = nearest_centroids(points_ND, torch.from_numpy(centroids_KD), num_labels=3)
    assert torch.equal(found.ids_P.view(80, 3).sort(dim=1).values, exact.ids_NL.long().sort(dim=1).values)


def test_a_missing_faiss_or_gpu_build_is_an_error_with_the_fix(monkeypatch):
    centroids_KD = torch.from_numpy(oracle.on_grid(oracle.blobs(3, 4, 2, seed=0).astype("float64")))
    with pytest.raises(ConfigError, match=r"cannot search on meta.*expected cpu, or cuda with faiss-gpu"):
        FaissSearch(centroids_KD, "meta")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        ConfigError, match=r"not installed; expected faiss-cpu or faiss-gpu: install mlcd with the extra cpu"
    ):
        FaissSearch(centroids_KD, "cpu")
