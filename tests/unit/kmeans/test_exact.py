import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcd_core.kmeans.exact import are_unit_rows_on_grid, norms, unit_rows_on_grid
from tests.unit.kmeans import oracle


@given(st.integers(1, 40), st.integers(0, 1000))
def test_norm_tree_and_grid_equal_the_oracle(dim, seed):
    rows_ND = np.random.default_rng(seed).standard_normal((5, dim))
    assert np.array_equal(norms(torch.from_numpy(rows_ND)).numpy(), np.sqrt(oracle.tree_sum(rows_ND**2)))
    unit_ND = unit_rows_on_grid(torch.from_numpy(rows_ND))
    assert np.array_equal(unit_ND.numpy(), oracle.on_grid(rows_ND))
    assert are_unit_rows_on_grid(unit_ND)


def test_norms_are_rounded_correctly():
    rows_ND = torch.from_numpy(np.random.default_rng(0).random((20_000, 1)) * 60)
    assert norms(rows_ND).tolist() == [math.sqrt(value * value) for value in rows_ND[:, 0].tolist()]


def test_float64_dots_and_sums_are_exact_in_any_order():
    points_ND = oracle.normalised_rows(oracle.blobs(500, 33, 5, seed=0))
    centroids_KD = oracle.on_grid(oracle.blobs(40, 33, 5, seed=1).astype(np.float64))
    exact_NK = oracle.scores_in_steps(points_ND, centroids_KD) / 2.0**48
    shuffled = np.random.default_rng(0).permutation(33)
    for order in (np.arange(33), shuffled):
        dots_NK = torch.from_numpy(points_ND[:, order]).double() @ torch.from_numpy(centroids_KD[:, order]).double().T
        assert np.array_equal(dots_NK.numpy(), exact_NK)
    sums_D = torch.from_numpy(points_ND).double().sum(dim=0).numpy()
    assert np.array_equal(sums_D * 2.0**24, oracle.integers(points_ND).sum(axis=0))


@pytest.mark.parametrize("scale", [1.001, 1 + 2.0**-30])
def test_rows_off_length_or_off_grid_are_told_apart(scale):
    unit_KD = unit_rows_on_grid(torch.from_numpy(oracle.blobs(4, 8, 2, seed=0)).double())
    assert not are_unit_rows_on_grid(unit_KD.double() * scale)
