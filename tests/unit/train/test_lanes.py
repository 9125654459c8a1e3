"""Lanes: every usable row once per epoch, and the same global batches for every world size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcd_core.errors import ConfigError, TrainingError
from mlcd_core.train import lanes as lanes_module
from mlcd_core.train.lanes import Lanes, check_lanes

row_groups = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any)


def rows_of(lanes, epoch, lane, step):
    found = lanes.epoch(epoch).rows(lane, step)
    return list(zip(found.group_n.tolist(), found.position_n.tolist(), strict=True))


@given(usable=row_groups, num_lanes=st.sampled_from([1, 2, 3, 8]), per_lane=st.integers(1, 5), seed=st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_every_usable_row_comes_exactly_once_per_epoch(usable, num_lanes, per_lane, seed):
    lanes = Lanes(np.array(usable), num_lanes, num_lanes * per_lane, seed)
    for epoch in (0, 1):
        order = lanes.epoch(epoch)
        seen = []
        for step in range(lanes.steps_per_epoch):
            for lane in range(num_lanes):
                rows = order.rows(lane, step)
                assert len(rows.group_n) <= per_lane
                seen += zip(rows.group_n.tolist(), rows.position_n.tolist(), strict=True)
        expected = [(group, position) for group, count in enumerate(usable) for position in range(count)]
        assert sorted(seen) == expected


def test_steps_that_cross_windows_lose_nothing(monkeypatch):
    monkeypatch.setattr(lanes_module, "WINDOW_ROWS", 7)
    lanes = Lanes(np.array([50, 31]), num_lanes=2, batch_size=10, seed=1)
    seen = [row for step in range(lanes.steps_per_epoch) for lane in (0, 1) for row in rows_of(lanes, 0, lane, step)]
    assert sorted(seen) == [(0, i) for i in range(50)] + [(1, i) for i in range(31)]


def test_epochs_and_seeds_differ_and_rows_are_shuffled():
    usable = np.full(20, 30)
    first, second, other_seed = (
        [rows_of(Lanes(usable, 4, 16, seed), epoch, 0, step) for step in range(3)]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    )
    assert first != second
    assert first != other_seed
    assert first[0] != sorted(first[0])


def test_only_the_tail_of_an_epoch_is_short():
    lanes = Lanes(np.array([10, 11]), num_lanes=4, batch_size=8, seed=0)
    assert lanes.steps_per_epoch == 3
    lengths = [[len(rows_of(lanes, 0, lane, step)) for lane in range(4)] for step in range(3)]
    assert lengths == [[2, 2, 2, 2], [2, 2, 2, 2], [1, 1, 1, 2]]


def test_batch_that_is_no_multiple_of_lanes_names_the_fix():
    with pytest.raises(ConfigError, match=r"train.batch_size=64"):
        check_lanes(batch_size=60, num_lanes=8, world_size=1)


def test_world_size_that_does_not_divide_the_lanes_names_those_that_do():
    with pytest.raises(TrainingError, match=r"\[1, 2, 4, 8\]"):
        check_lanes(batch_size=64, num_lanes=8, world_size=3)
