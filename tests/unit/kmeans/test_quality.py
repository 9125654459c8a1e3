import torch

from mlcd_core.kmeans.quality import size_quality


def test_equal_clusters_are_balanced():
    quality = size_quality(torch.full((7,), 30))
    assert quality["imbalance"] == 1
    assert set(quality["size_quantiles"].values()) == {30}
    assert quality["sizes"] == [[30, 7]]


def test_one_cluster_with_all_rows_has_an_imbalance_of_k():
    assert size_quality(torch.tensor([0, 0, 500, 0]))["imbalance"] == 4


def test_quantiles_are_sizes_that_occur():
    quality = size_quality(torch.arange(101).flip(0))
    expected = {"min": 0, "1 %": 1, "25 %": 25, "median": 50, "75 %": 75, "99 %": 99, "max": 100}
    assert quality["size_quantiles"] == expected
    assert sum(size * clusters for size, clusters in quality["sizes"]) == 5050


def test_squares_of_big_clusters_do_not_overflow():
    assert size_quality(torch.tensor([2**33, 2**33]))["imbalance"] == 1
