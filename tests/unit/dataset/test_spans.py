"""Spans tile the row groups of every shard in order, and the parts made of them are found again by their rows."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcd_core.dataset import Shard, Span, parts_of_shards, spans_of
from mlcd_core.errors import LabelDataError
from mlcd_core.store import Part

shards = st.lists(st.lists(st.integers(0, 12), max_size=8).map(tuple), max_size=5).map(
    lambda all_groups: [shard_of(groups, f"{i}.parquet") for i, groups in enumerate(all_groups)]
)


def shard_of(row_groups: tuple[int, ...], uri: str = "x.parquet") -> Shard:
    return Shard(uri, "d" * 64, bytes=1, rows=sum(row_groups), row_groups=row_groups)


def part_of(rows: int, name: str = "part") -> Part:
    return Part(name, f"data/{name}", rows=rows, usable=rows, bytes=0, sha256="")


@pytest.mark.parametrize(
    ("row_groups", "expected"),
    [
        ((100,) * 100, [(0, 10_000, 0, 100)]),
        ((100,) * 101, [(0, 10_000, 0, 100), (10_000, 100, 100, 1)]),
        ((4_000, 4_000, 4_000), [(0, 8_000, 0, 2), (8_000, 4_000, 2, 1)]),
        ((30_000, 10), [(0, 30_000, 0, 1), (30_000, 10, 1, 1)]),
        ((0, 30_000, 0), [(0, 30_000, 0, 3)]),
        ((), [(0, 0, 0, 0)]),
    ],
)
def test_shards_are_cut_between_row_groups_as_late_as_the_limit_allows(
    row_groups: tuple[int, ...], expected: list[tuple[int, int, int, int]]
) -> None:
    shard = shard_of(row_groups)
    assert spans_of([shard], 10_000) == tuple(Span(shard, *fields) for fields in expected)


@settings(deadline=None)
@given(shards, st.integers(1, 30))
def test_spans_tile_the_rows_of_every_shard_in_order(shards: list[Shard], limit: int) -> None:
    spans = spans_of(shards, limit)
    assert spans == spans_of(shards, limit)
    assert [span.shard for span in spans] == sorted((span.shard for span in spans), key=lambda shard: shard.uri)
    for shard in shards:
        own = [span for span in spans if span.shard.uri == shard.uri]
        groups = [group for span in own for group in range(span.first_group, span.first_group + span.groups)]
        assert groups == list(range(len(shard.row_groups)))
        assert [span.first_row for span in own] == [0, *accumulate(span.rows for span in own)][:-1]
        for span in own:
            inside = shard.row_groups[span.first_group : span.first_group + span.groups]
            assert span.rows == sum(inside)
            assert span.rows <= limit or sum(rows > 0 for rows in inside) == 1
            assert span.rows > 0 or shard.rows == 0
        if shard.rows <= limit:
            assert len(own) == 1
        assert all(a.rows + shard.row_groups[b.first_group] > limit for a, b in pairwise(own))


@settings(deadline=None)
@given(shards, st.integers(1, 30))
def test_the_parts_of_spans_are_found_again_by_their_rows(shards: list[Shard], limit: int) -> None:
    spans = spans_of(shards, limit)
    parts = [part_of(span.rows, f"{number}") for number, span in enumerate(spans)]
    expected = [
        [part for part, span in zip(parts, spans, strict=True) if span.shard.uri == shard.uri] for shard in shards
    ]
    assert parts_of_shards(parts, shards) == expected


@pytest.mark.parametrize(
    ("part_rows", "message"),
    [
        ([3, 0], r"the parts of b\.parquet hold 0 rows; expected its 5; they are of other shards"),
        ([3], r"the parts of b\.parquet hold 0 rows"),
        ([2, 2, 4], r"the parts of a\.parquet hold 4 rows; expected its 3"),
        ([3, 5, 0], "3 parts for 2 shards, 1 of them of no shard"),
    ],
)
def test_parts_that_do_not_add_up_are_refused(part_rows: list[int], message: str) -> None:
    shards = [shard_of((3,), "a.parquet"), shard_of((5,), "b.parquet")]
    with pytest.raises(LabelDataError, match=message):
        parts_of_shards([part_of(rows) for rows in part_rows], shards)
