"""Copies are counted over all ranks: the same number for any number of ranks, sampled or not."""

import numpy as np
import torch.distributed as dist

from mlcd_core.kmeans import ArrayPoints
from mlcd_core.kmeans.identical import count_identical_rows
from mlcd_core.kmeans.ranks import Ranks
from tests.distributed.harness import run_ranks
from tests.unit.kmeans import oracle

ROWS_ND = oracle.blobs(3000, 5, 12, seed=0)
# copies beside each other and far apart, so that ranks hold both of a pair or one
ROWS_ND[1::2] = ROWS_ND[::2]
ROWS_ND[2000:2500] = ROWS_ND[:500]


def count_alone_and_shared(group):
    rank = dist.get_rank(group)
    # the last rank has no rows
    own_ND = np.array_split(ROWS_ND, 2)[rank] if rank < 2 else ROWS_ND[:0]
    counts = [count_identical_rows(ArrayPoints(own_ND), Ranks(group), sample_rows=rows) for rows in (3000, 700)]
    return [(count.identical, count.sampled) for count in counts]


def test_any_number_of_ranks_counts_the_same_copies(tmp_path):
    whole = [count_identical_rows(ArrayPoints(ROWS_ND), Ranks(None), sample_rows=rows) for rows in (3000, 700)]
    assert (whole[0].identical, whole[0].sampled) == (3000, 3000)
    assert whole[1].sampled < 700
    for counts in run_ranks(count_alone_and_shared, 3, tmp_path):
        assert counts == [(count.identical, count.sampled) for count in whole]
