"""Which parts of the embed or label manifest belong to which shard.

A shard has a part for each of its spans, and a manifest lists them in order. Rows decide where a shard ends: it takes
one part, since also a shard without rows has one, and then more until they hold all its rows.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mlcd_core.dataset.shard import Shard
from mlcd_core.errors import LabelDataError

if TYPE_CHECKING:
    from mlcd_core.store import Part

_FIX = "they are of other shards: run the embed and label stages again"


def parts_of_shards(parts: Sequence["Part"], shards: Sequence[Shard]) -> list[list["Part"]]:
    """The parts of each shard, in order. Raises LabelDataError when they do not add up to the shards' rows."""
    left = iter(parts)
    taken = [_take(left, shard) for shard in shards]
    spare = len(list(left))
    if spare:
        raise LabelDataError(f"{len(parts):,} parts for {len(shards):,} shards, {spare:,} of them of no shard; {_FIX}")
    return taken


def _take(left: "Iterator[Part]", shard: Shard) -> list["Part"]:
    own: list[Part] = []
    rows = 0
    while not own or rows < shard.rows:
        part = next(left, None)
        if part is None:
            break
        own.append(part)
        rows += part.rows
    if not own or rows != shard.rows:
        raise LabelDataError(f"the parts of {shard.uri} hold {rows:,} rows; expected its {shard.rows:,}; {_FIX}")
    return own
