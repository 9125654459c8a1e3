"""The units that embed makes of shards: spans of whole row groups, so that each is read without the others.

A shard with few rows is one span. A bigger one is cut between row groups as late as ``rows_per_unit`` allows, so the
spans depend on nothing but the shard and that number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlcd_core.dataset.shard import Shard


@dataclass(frozen=True)
class Span:
    """Consecutive row groups of a shard, from ``first_group`` on, and the rows in them, from ``first_row`` on."""

    shard: Shard
    first_row: int
    rows: int
    first_group: int
    groups: int


def spans_of(shards: Sequence[Shard], rows_per_unit: int) -> tuple[Span, ...]:
    """All spans in order, at least one of each shard, also of one without rows.

    A span has at most ``rows_per_unit`` rows, or is of one row group that has more.
    """
    return tuple(span for shard in shards for span in _spans(shard, rows_per_unit))


def _spans(shard: Shard, rows_per_unit: int) -> Iterator[Span]:
    assert sum(shard.row_groups) == shard.rows, f"row groups of {shard.uri} do not add up to its rows"
    first_row = first_group = rows = 0
    for group, group_rows in enumerate(shard.row_groups):
        # groups without rows stay with their neighbours: only a shard without rows makes a part without rows
        if rows and group_rows and rows + group_rows > rows_per_unit:
            yield Span(shard, first_row, rows, first_group, group - first_group)
            first_row, first_group, rows = first_row + rows, group, 0
        rows += group_rows
    yield Span(shard, first_row, rows, first_group, len(shard.row_groups) - first_group)
