"""Class blocks and the negative draw: exact size, the same chance for every class, any world size."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcd_core.errors import TrainingError
from mlcd_core.hashing import splitmix64
from mlcd_core.train.head import HeadSpec, ShardedHead
from mlcd_core.train.head.blocks import ClassBlocks
from mlcd_core.train.head.sampling import block_quotas, num_negatives, sampled_classes

CPU = torch.device("cpu")


def draw(partition, blocks, num_sampled, seed=0, step=0):
    return sampled_classes(partition, blocks, num_sampled=num_sampled, seed=seed, step=step, device=CPU)


@given(num_classes=st.integers(1, 3_000_000), world_size=st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_blocks_partition_the_classes_for_any_world_size(num_classes, world_size):
    partition = ClassBlocks(num_classes)
    assert 8 <= partition.num_blocks <= 1024
    assert partition.num_blocks & (partition.num_blocks - 1) == 0
    owned = [partition.classes(partition.owned(rank, world_size)) for rank in range(world_size)]
    assert owned[0].start == 0
    assert owned[-1].stop == num_classes
    assert all(a.stop == b.start for a, b in pairwise(owned))


def test_number_of_blocks_follows_the_rule():
    sizes = {5: 8, 64: 8, 2_048: 8, 4_096: 16, 100_000: 512, 1_000_000: 1024}
    assert {c: ClassBlocks(c).num_blocks for c in sizes} == sizes


def test_more_ranks_than_blocks_is_refused():
    with pytest.raises(TrainingError, match="at most 8 ranks"):
        ClassBlocks(100).owned(0, 16)


@given(num_classes=st.integers(1, 600), share=st.floats(0.001, 1))
@settings(max_examples=60, deadline=None)
def test_every_class_has_the_same_chance_and_the_total_is_exact(num_classes, share):
    partition = ClassBlocks(num_classes)
    num_sampled = num_negatives(num_classes, share)
    bounds = torch.tensor([partition.start(block) for block in range(partition.num_blocks + 1)])
    quotas_KV = torch.stack(
        [
            block_quotas(bounds, num_sampled=num_sampled, offset=offset, num_classes=num_classes)
            for offset in range(num_classes)
        ]
    )
    assert (quotas_KV.sum(dim=1) == num_sampled).all()
    assert (quotas_KV <= bounds.diff()).all()
    # inside a block classes are exchangeable, so the chance of a class is quota / size: over all offsets, S / C each
    assert (quotas_KV.sum(dim=0) == num_sampled * bounds.diff()).all()


@given(
    num_classes=st.integers(1, 5_000), share=st.floats(0.001, 1), step=st.integers(0, 2**40), seed=st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_draw_is_the_smallest_keys_of_each_block(num_classes, share, step, seed):
    partition, num_sampled = ClassBlocks(num_classes), num_negatives(num_classes, share)
    found = draw(partition, range(partition.num_blocks), num_sampled, seed, step).tolist()
    offset = int(splitmix64(seed, step)) % num_classes
    key_C = splitmix64(seed, step, torch.arange(num_classes)).tolist()
    expected = []
    for block in range(partition.num_blocks):
        start, end = partition.start(block), partition.start(block + 1)
        quota = (num_sampled * end + offset) // num_classes - (num_sampled * start + offset) // num_classes
        by_key = sorted(range(start, end), key=key_C.__getitem__)
        expected += by_key[:quota]
    assert found == sorted(expected)
    assert len(found) == num_sampled


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_ranks_draw_together_what_one_rank_draws(world_size):
    partition = ClassBlocks(5_000)
    parts = [draw(partition, partition.owned(rank, world_size), 500, step=9) for rank in range(world_size)]
    assert torch.equal(torch.cat(parts), draw(partition, range(partition.num_blocks), 500, step=9))


def test_every_class_is_drawn_about_equally_often():
    head = ShardedHead(HeadSpec(negative_ratio=0.1), 300, 2)
    counts_C = torch.zeros(300)
    for step in range(1_000):
        counts_C[head.sampled_ids(step)] += 1
    # 1000 draws at chance 0.1: mean 100, standard deviation 9.5; five of them bound 300 classes
    assert counts_C.mean() == 100
    assert (counts_C - 100).abs().max() < 48


def test_ratio_one_draws_every_class():
    head = ShardedHead(HeadSpec(negative_ratio=1.0), 77, 2)
    assert head.sampled_ids(5).tolist() == list(range(77))
