"""Embedding tables as blocks: views of the Arrow memory, which may be a mapped file, without the unusable rows.

A table keeps its rows in record batches; each becomes one piece of a block. Shapes: N rows, D dims.
"""

import pyarrow as pa
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from mlcd_core.kmeans.points import Block, Piece, Points, RowIds, check_unit_rows
from mlcd_core.tables import BLOCK_ROWS


def table_block(table: pa.Table, *, number: int, offset: int = 0) -> Block:
    """The usable rows of an embedding table as they are stored; their global ids are ``offset`` + ``row``.

    Nothing is copied. Raises DataError naming a usable row that is not a float16 unit row.
    """
    block = Block.of(number, [_piece(batch, offset) for batch in table.to_batches() if batch.num_rows])
    check_unit_rows(block)
    return block


def table_points(table: pa.Table) -> Points:
    """A whole embedding table as blocks 0, 1, ...; errors as ``table_block``."""
    starts = range(0, table.num_rows, BLOCK_ROWS)
    blocks = [table_block(table.slice(start, BLOCK_ROWS), number=number) for number, start in enumerate(starts)]
    return Points(blocks, table_dim(table))


def table_dim(table: pa.Table) -> int:
    """D of an embedding table."""
    dim: int = table.schema.field("embedding").type.list_size
    return dim


def _piece(batch: pa.RecordBatch, offset: int) -> Piece:
    values = _tensor(batch.column("embedding").flatten())
    return Piece(
        rows_ND=values.view(batch.num_rows, -1),
        ids=RowIds(offset, _tensor(batch.column("row"))),
        status_N=_tensor(batch.column("status")),
    )


def _tensor(values: pa.Array) -> Tensor:
    tensor: Tensor = from_dlpack(values)
    return tensor
