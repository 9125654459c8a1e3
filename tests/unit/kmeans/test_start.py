import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcd_core.errors import ConfigError, TooFewRowsError
from mlcd_core.kmeans import ArrayPoints, ClusterSpec
from mlcd_core.kmeans.points import Block, Points
from mlcd_core.kmeans.ranks import Ranks
from mlcd_core.kmeans.start import first_distinct_rows
from tests.unit.kmeans import oracle

ALONE = Ranks(None)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 80), st.integers(1, 200), st.integers(1, 200), st.integers(1, 200))
def test_start_is_the_first_distinct_rows_in_hash_order(seed, num_centroids, num_distinct, num_rows, block_rows):
    random = np.random.default_rng(seed)
    distinct_ND = oracle.normalised_rows(random.standard_normal((num_distinct, 4)))
    points_ND = distinct_ND[random.integers(0, num_distinct, num_rows)]
    row_ids = random.permutation(10 * num_rows)[:num_rows]
    points = ArrayPoints(points_ND, row_ids=row_ids, block_rows=block_rows)
    expected_KD = oracle.hash_ranked_start(points_ND, row_ids.tolist(), num_centroids, seed)
    if len(expected_KD) < num_centroids:
        with pytest.raises(TooFewRowsError, match=f"only {len(expected_KD)} are distinct"):
            first_distinct_rows(points, num_centroids, seed, ALONE)
    else:
        assert np.array_equal(first_distinct_rows(points, num_centroids, seed, ALONE).numpy(), expected_KD)


@pytest.mark.parametrize("num_distinct", [40, 20_000])
def test_start_of_many_more_rows_than_are_kept_is_the_first_in_hash_order(num_distinct):
    random = np.random.default_rng(0)
    distinct_ND = oracle.normalised_rows(random.standard_normal((num_distinct, 3)))
    points_ND = distinct_ND[random.integers(0, num_distinct, 20_000)]
    points = ArrayPoints(points_ND, block_rows=3000)
    expected_KD = oracle.hash_ranked_start(points_ND, range(20_000), 30, seed=5)
    assert np.array_equal(first_distinct_rows(points, 30, 5, ALONE).numpy(), expected_KD)


def test_blocks_without_a_row_that_comes_first_are_not_read():
    points = ArrayPoints(oracle.blobs(40_000, 2, 5, seed=0), block_rows=200)
    read = []

    class Watched(Block):
        def tiles(self, tile_rows):
            read.append(self.number)
            return super().tiles(tile_rows)

    watched = Points([Watched.of(block.number, block.pieces) for block in points.blocks], points.dim)
    assert torch.equal(first_distinct_rows(watched, 1, 0, ALONE), first_distinct_rows(points, 1, 0, ALONE))
    assert read[0] == 0
    assert len(read) < 200


def test_zeros_of_either_sign_are_the_same_row():
    points = ArrayPoints(np.array([[1.0, 0.0], [1.0, -0.0]] * 4, dtype=np.float16))
    with pytest.raises(TooFewRowsError, match="only 1 are distinct"):
        first_distinct_rows(points, 2, 0, ALONE)


def test_the_seed_changes_the_start():
    points = ArrayPoints(oracle.blobs(100, 4, 5, seed=0))
    starts = [first_distinct_rows(points, 5, seed, ALONE) for seed in (0, 1)]
    assert not torch.equal(*starts)


def test_repeated_row_ids_are_an_error():
    points = ArrayPoints(oracle.blobs(20, 4, 5, seed=0), row_ids=[3] * 20)
    with pytest.raises(ConfigError, match="row id 3 stands for more than one row"):
        first_distinct_rows(points, 2, 0, ALONE)


@pytest.mark.parametrize(("num_rows", "expected"), [(4, 1), (59, 1), (60, 2), (3000, 100)])
def test_centroids_follow_the_rows_unless_given(num_rows, expected):
    assert ClusterSpec(rows_per_centroid=30).centroids_of(num_rows) == expected


def test_more_centroids_than_a_quarter_of_the_rows_name_the_fix():
    with pytest.raises(TooFewRowsError, match=r"1,000,000 centroids from 389,737 .*num_centroids <= 97,434 or add"):
        ClusterSpec(num_centroids=1_000_000).centroids_of(389_737)
    for num_rows in (0, 3):
        with pytest.raises(TooFewRowsError, match="rows/4: add shards"):
            ClusterSpec().centroids_of(num_rows)
