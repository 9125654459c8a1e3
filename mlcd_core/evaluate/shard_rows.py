"""Which rows of the shards evaluation looks at: those that the embed stage could read.

The others are in no cluster, their images may kill a decoder and their row group may be unreadable: a row group without
a usable row is not read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcd_core.dataset import Shard, ShardReader
from mlcd_core.specs import EvaluateSpec


@dataclass(frozen=True, eq=False)
class UsableRows:
    """A shard, the number of its first row among all shards, which of its rows are usable, and where those are."""

    shard: Shard
    first_row: int
    usable_N: NDArray[np.bool_]

    @property
    def row_groups(self) -> list[int]:
        """The row groups with usable rows."""
        starts = self.shard.group_starts
        groups = range(len(self.shard.row_groups))
        return [group for group in groups if self.usable_N[starts[group] : starts[group + 1]].any()]


def usable_rows(shards: Sequence[Shard], usable_N: NDArray[np.bool_] | None) -> Iterator[UsableRows]:
    """The shards with their part of ``usable_N``, which counts through all shards; None: every row is usable."""
    first_rows = [0, *accumulate(shard.rows for shard in shards)]
    every_N = np.ones(first_rows[-1], dtype=bool) if usable_N is None else usable_N
    for shard, first_row in zip(shards, first_rows, strict=False):
        yield UsableRows(shard, first_row, every_N[first_row : first_row + shard.rows])


def read_raw_labels(
    shards: Sequence[Shard], *, spec: EvaluateSpec, usable_N: NDArray[np.bool_] | None = None
) -> list[Any]:
    """The true label of every row, without a look at the images; None in row groups without usable rows."""
    labels: list[Any] = []
    for rows in usable_rows(shards, usable_N):
        own: list[Any] = [None] * rows.shard.rows
        if rows.row_groups:
            reader = ShardReader(rows.shard, image_column=spec.image_column, label_column=spec.label_column)
            for group, found in zip(rows.row_groups, reader.read_labels(rows.row_groups), strict=True):
                first = rows.shard.group_starts[group]
                own[first : first + len(found)] = found
        labels += own
    return labels
