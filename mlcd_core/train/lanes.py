"""Lanes: which rows make up which batch, for any world size, from nothing but (epoch, step).

The usable rows of an epoch, row groups permuted and laid end to end, are cut into a fixed number of lanes of equal
length (give or take one row). A batch takes the next few rows of every lane; rank r of W serves lanes r, r + W, ... So
the global batches are the same for every W that divides the lanes, each row comes exactly once per epoch, and a resumed
run jumps to its step: there is no position to save and nothing to replay. Inside a lane, rows are shuffled in windows,
so that a lane keeps only the row groups of one window in memory. This file is arithmetic only; it reads nothing.

G row groups, n rows asked for.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from mlcd_core.errors import ConfigError, TrainingError
from mlcd_core.hashing import splitmix64

WINDOW_ROWS = 1024


@dataclass(frozen=True)
class LaneRows:
    """Rows in reading order: the row group of each, and its position among that group's usable rows."""

    group_n: np.ndarray
    position_n: np.ndarray


@dataclass(frozen=True)
class Lanes:
    """The order of every epoch. ``usable_G`` counts the usable rows of each row group of the data, in order."""

    usable_G: np.ndarray
    num_lanes: int
    batch_size: int
    seed: int

    @property
    def num_rows(self) -> int:
        """N, the usable rows; each comes once per epoch."""
        return int(self.usable_G.sum())

    @property
    def rows_per_step(self) -> int:
        """Rows that a lane gives to a batch."""
        return self.batch_size // self.num_lanes

    @property
    def steps_per_epoch(self) -> int:
        """Batches until the longest lane ends; shorter lanes are padded."""
        longest = -(-self.num_rows // self.num_lanes)
        return -(-longest // self.rows_per_step)

    def epoch(self, epoch: int) -> "EpochOrder":
        """The order of one epoch."""
        key_G = splitmix64(self.seed, epoch, torch.arange(len(self.usable_G)))
        return EpochOrder(self, epoch, key_G.argsort(stable=True).numpy())


class EpochOrder:
    """Row groups in the order of one epoch, and the rows of its lanes by position."""

    def __init__(self, lanes: Lanes, epoch: int, group_order_G: np.ndarray) -> None:
        self._lanes = lanes
        self._epoch = epoch
        self._group_order_G = group_order_G
        self._end_G = lanes.usable_G[group_order_G].cumsum()
        self.window = lru_cache(4 * lanes.num_lanes)(self._window)

    def windows_of(self, step: int) -> range:
        """The windows that a step reads, the same for every lane."""
        begin = step * self._lanes.rows_per_step
        return range(begin // WINDOW_ROWS, (begin + self._lanes.rows_per_step - 1) // WINDOW_ROWS + 1)

    def rows(self, lane: int, step: int) -> LaneRows:
        """What a lane gives to the batch of ``step``; fewer rows, or none, where the lane ends."""
        numbers = self.windows_of(step)
        windows = [self.window(lane, number) for number in numbers]
        begin = step * self._lanes.rows_per_step - numbers.start * WINDOW_ROWS
        part = slice(begin, begin + self._lanes.rows_per_step)
        return LaneRows(
            np.concatenate([window.group_n for window in windows])[part],
            np.concatenate([window.position_n for window in windows])[part],
        )

    def _window(self, lane: int, number: int) -> LaneRows:
        """The rows of one window of a lane, shuffled by (seed, epoch, lane)."""
        lanes = self._lanes
        lane_start = lane * lanes.num_rows // lanes.num_lanes
        lane_end = (lane + 1) * lanes.num_rows // lanes.num_lanes
        begin = lane_start + number * WINDOW_ROWS
        unshuffled_n = torch.arange(begin, max(begin, min(begin + WINDOW_ROWS, lane_end)))
        key_n = splitmix64(lanes.seed, self._epoch, lane, unshuffled_n)
        row_n = unshuffled_n[key_n.argsort(stable=True)].numpy()
        place_n = np.searchsorted(self._end_G, row_n, side="right")
        group_n = self._group_order_G[place_n]
        return LaneRows(group_n, row_n - (self._end_G[place_n] - lanes.usable_G[group_n]))


def check_lanes(*, batch_size: int, num_lanes: int, world_size: int) -> None:
    """Raise ConfigError unless lanes divide the batch, TrainingError unless the world size divides the lanes."""
    if batch_size % num_lanes:
        raise ConfigError(
            f"train.batch_size={batch_size} is no multiple of train.lanes={num_lanes}; "
            f"set train.batch_size={-(-batch_size // num_lanes) * num_lanes}, or fewer lanes"
        )
    if num_lanes % world_size:
        fitting = [size for size in range(1, num_lanes + 1) if num_lanes % size == 0]
        raise TrainingError(
            f"{world_size} train workers cannot share {num_lanes} lanes; expected one of {fitting} workers: "
            "set train.workers to one of these, or train.lanes to a multiple of the workers"
        )
