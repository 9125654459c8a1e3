"""Rows that equal another one are counted exactly, or estimated from a share of the contents, for any ranks."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcd_core.kmeans import ArrayPoints
from mlcd_core.kmeans.content import content_hashes, first_of_each
from mlcd_core.kmeans.identical import count_identical_rows
from mlcd_core.kmeans.ranks import Ranks
from tests.unit.kmeans import oracle

ALONE = Ranks(None)


def repeated_rows(num_distinct, num_rows, dim, seed=0):
    random = np.random.default_rng(seed)
    distinct_ND = oracle.normalised_rows(random.standard_normal((num_distinct, dim)))
    return distinct_ND[random.integers(0, num_distinct, num_rows)]


def count_in_plain_python(points_ND):
    copies = Counter(tuple(row) for row in points_ND.tolist())
    return sum(count for count in copies.values() if count > 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(1, 60), st.integers(0, 120), st.sampled_from([1, 3, 4, 7]))
def test_every_row_with_a_copy_is_counted(seed, num_distinct, num_rows, dim):
    points_ND = repeated_rows(num_distinct, num_rows, dim, seed)
    found = count_identical_rows(ArrayPoints(points_ND, block_rows=16), ALONE)
    assert (found.identical, found.sampled) == (count_in_plain_python(points_ND), num_rows)


def test_zeros_of_either_sign_are_the_same_number():
    points = ArrayPoints(np.array([[1.0, 0.0], [1.0, -0.0], [0.0, 1.0]], dtype=np.float16))
    assert count_identical_rows(points, ALONE).identical == 2


def test_estimate_from_a_share_of_the_contents_is_near_the_count():
    points_ND = repeated_rows(4000, 8000, 4)
    found = count_identical_rows(ArrayPoints(points_ND), ALONE, sample_rows=2000)
    assert 1700 < found.sampled < 2300
    # 1000 of 4000 contents are drawn, with two rows each on average
    assert found.identical == pytest.approx(count_in_plain_python(points_ND), rel=0.1)
    assert found.identical != count_in_plain_python(points_ND)


def test_hashes_tell_rows_apart_that_differ_in_one_bit_anywhere():
    row_D = oracle.normalised_rows(oracle.blobs(1, 37, 1, seed=0))[0]
    rows_ND = np.repeat(row_D[None], 38, axis=0)
    for d in range(37):
        rows_ND[d + 1, d] = np.nextafter(rows_ND[d + 1, d], np.float16(2))
    assert len(set(content_hashes(torch.from_numpy(rows_ND)).tolist())) == 38


def test_hashes_do_not_depend_on_the_rows_beside():
    rows_ND = torch.from_numpy(repeated_rows(50, 50, 4000))
    assert torch.equal(content_hashes(rows_ND), torch.cat([content_hashes(row[None]) for row in rows_ND]))


@pytest.mark.parametrize("equal_hashes", [False, True])
def test_first_of_each_content_is_found_in_the_given_order(equal_hashes):
    rows_ND = repeated_rows(20, 60, 3)
    order = np.random.default_rng(1).permutation(60)[:45]
    seen, expected = set(), []
    for position, row in enumerate(order):
        if tuple(rows_ND[row]) not in seen:
            seen.add(tuple(rows_ND[row]))
            expected.append(position)
    rows = torch.from_numpy(rows_ND)
    hashes = torch.zeros(60, dtype=torch.int64) if equal_hashes else content_hashes(rows)
    assert first_of_each(rows, hashes, torch.from_numpy(order)).tolist() == expected
