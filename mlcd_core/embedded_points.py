"""The rows of committed embedding parts, cut into blocks and mapped, for one of many workers.

Blocks are numbered through all parts and do not depend on the number of workers: worker r of W takes the blocks r,
r + W, ... . Its rows stay in the mapped files, so memory does not grow with the rows; the page cache keeps what fits.
A worker checks the sha256 of every part that holds one of its blocks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from mlcd_core.errors import CorruptRecordError
from mlcd_core.store import Files, Part, map_part
from mlcd_core.tables import BLOCK_ROWS

if TYPE_CHECKING:
    import pyarrow as pa

    from mlcd_core.kmeans.points import Block, Points


@dataclass(frozen=True)
class BlockRange:
    """Block ``number``: the rows ``start`` to ``stop`` of part ``part`` (its position), usable or not."""

    number: int
    part: int
    start: int
    stop: int


def block_ranges(parts: Sequence[Part]) -> list[BlockRange]:
    """All blocks in order: each part gives ceil(rows / BLOCK_ROWS), a part without rows none."""
    cuts = [(index, start) for index, part in enumerate(parts) for start in range(0, part.rows, BLOCK_ROWS)]
    return [
        BlockRange(number, index, start, min(start + BLOCK_ROWS, parts[index].rows))
        for number, (index, start) in enumerate(cuts)
    ]


def mapped_points(files: Files, parts: Sequence[Part], *, rank: int, world: int) -> "Points":
    """The usable rows of blocks rank, rank + world, ... of the embedding parts, with their global ids.

    A row's global id is its position among the rows of all parts: part.offset + its position in the part.
    Raises CorruptRecordError for a part that is gone or changed, DataError naming a row that is no float16 unit row.
    """
    from mlcd_core.kmeans.points import Points
    from mlcd_core.kmeans.table_blocks import table_dim

    blocks = list(_own_blocks(files, parts, block_ranges(parts)[rank::world]))
    # a worker without blocks takes part in the sums, so it must know how wide they are
    dim = blocks[0].dim if blocks else table_dim(_mapped_table(files, parts[0]))
    return Points(blocks, dim)


def embedding_dim(files: Files, parts: Sequence[Part]) -> int:
    """D of the embeddings, by the schema of the first part."""
    from mlcd_core.images.embed_shard import read_ipc

    data = files.map(parts[0].path)
    if data is None:
        raise CorruptRecordError(f"{files.uri(parts[0].path)} is gone; run again, only what it stood for is redone")
    dim: int = read_ipc(data).schema.field("embedding").type.list_size
    return dim


def _own_blocks(files: Files, parts: Sequence[Part], own: Sequence[BlockRange]) -> Iterator["Block"]:
    from mlcd_core.kmeans.table_blocks import table_block

    for index, ranges in groupby(own, key=lambda block: block.part):
        part = parts[index]
        table = _mapped_table(files, part)
        # ``row`` counts inside the shard, of which the part may hold a later piece
        offset = part.offset - table["row"][0].as_py()
        for block in ranges:
            rows = table.slice(block.start, block.stop - block.start)
            yield table_block(rows, number=block.number, offset=offset)


def _mapped_table(files: Files, part: Part) -> "pa.Table":
    from mlcd_core.images.embed_shard import read_ipc

    table = read_ipc(map_part(files, part))
    if table.num_rows != part.rows:
        raise CorruptRecordError(
            f"{files.uri(part.path)} holds {table.num_rows:,} rows; expected {part.rows:,} as in its record: delete it "
            "and run again, only what it stood for is redone"
        )
    return table
