import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcd_core.kmeans.centroids import centroids_on_grid, next_centroids, plan_splits
from tests.unit.kmeans import oracle


def random_sums(num_centroids, dim, seed):
    return oracle.integers(oracle.on_grid(oracle.blobs(num_centroids, dim, 3, seed).astype(np.float64))) / 2.0**24


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 5))
def test_empty_clusters_split_like_the_oracle(counts, dim):
    counts_K = np.array([*counts, 8 * len(counts)])
    previous_KD = oracle.on_grid(oracle.blobs(len(counts_K), dim, 3, seed=1).astype(np.float64))
    sums_KD = random_sums(len(counts_K), dim, seed=2) * (counts_K > 0)[:, None]
    next_KD = next_centroids(torch.from_numpy(sums_KD), torch.from_numpy(counts_K), torch.from_numpy(previous_KD))
    expected_KD = np.where((sums_KD == 0).all(axis=1, keepdims=True), previous_KD, sums_KD)
    oracle.split_empty(expected_KD, counts_K.copy())
    assert np.array_equal(next_KD.numpy(), oracle.on_grid(expected_KD))


def test_each_empty_cluster_takes_half_of_the_then_biggest():
    assert plan_splits(torch.tensor([0, 9, 0, 10, 9, 0])) == [(0, 3), (2, 1), (5, 4)]
    assert plan_splits(torch.tensor([40, 0, 0, 0])) == [(1, 0), (2, 0), (3, 1)]
    assert plan_splits(torch.tensor([1, 2, 3])) == []


def test_halves_of_a_split_differ_and_stay_close():
    sums_KD = torch.from_numpy(random_sums(2, 8, seed=0))
    sums_KD[1] = 0
    next_KD = next_centroids(sums_KD, torch.tensor([10, 0]), sums_KD.float())
    assert not torch.equal(next_KD[0], next_KD[1])
    assert float(next_KD[0] @ next_KD[1]) > 1 - 1e-5


def test_rows_that_cancel_out_leave_their_centroid_in_place():
    previous_KD = torch.from_numpy(oracle.on_grid(oracle.blobs(2, 8, 2, seed=0).astype(np.float64)))
    sums_KD = torch.stack([torch.zeros(8, dtype=torch.float64), 3 * previous_KD[1].double()])
    assert torch.equal(next_centroids(sums_KD, torch.tensor([2, 3]), previous_KD)[0], previous_KD[0])


def test_centroids_on_the_grid_are_kept_and_others_moved_onto_it():
    rows_KD = oracle.blobs(5, 7, 2, seed=0)
    grid_KD = centroids_on_grid(rows_KD)
    assert np.array_equal(grid_KD.numpy(), oracle.on_grid(rows_KD.astype(np.float64)))
    assert torch.equal(centroids_on_grid(grid_KD), grid_KD)
