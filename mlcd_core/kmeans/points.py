"""The rows that k-means works on: blocks of float16 unit rows with the global ids of their rows.

A block is a fixed run of rows that one worker sums in one piece; which blocks there are does not depend on the number
of workers. A block holds views of memory that is there already (an array, a mapped file), never a copy, and a row that
is not usable is left out when a tile is read.

Stored embeddings are unit rows already and must not move, since normalising a rounded vector again rounds it elsewhere.
So a float16 row whose length is 1 within float16 rounding is kept bit for bit; every other row is normalised in float64
and rounded to float16 once. Shapes: N rows, B rows of a tile, D dims.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from mlcd_core.errors import DataError
from mlcd_core.kmeans.exact import UNIT_TOLERANCE, norms, to_float16
from mlcd_core.tables import BLOCK_ROWS

Rows = NDArray[np.floating] | Tensor

_FLOAT32_ROUNDOFF = 2.0**-23  # twice the unit, for sums of squares and the root
_NORM_TILE_ROWS = 4096  # float64 copies are made of so many rows at a time


@dataclass(frozen=True)
class RowIds:
    """Global ids of consecutive stored rows: ``first`` + ``given_N``, or ``first`` + position. Made on demand."""

    first: int = 0
    given_N: Tensor | None = None

    def of(self, rows: slice) -> Tensor:
        """Int64 ids of the rows at these positions (both ends given)."""
        if self.given_N is None:
            return torch.arange(self.first + rows.start, self.first + rows.stop)
        return self.given_N[rows] + self.first

    def after(self, start: int) -> Self:
        """The ids from position ``start`` on."""
        if self.given_N is None:
            return replace(self, first=self.first + start)
        return replace(self, given_N=self.given_N[start:])


@dataclass(frozen=True, eq=False)
class Piece:
    """Stored rows that lie together: ``rows_ND`` float16; a row is usable where ``status_N`` (int8) is 0, None: all."""

    rows_ND: Tensor
    ids: RowIds
    status_N: Tensor | None = None

    def num_usable(self) -> int:
        """How many rows may be read."""
        return len(self.rows_ND) if self.status_N is None else int((self.status_N == 0).sum())

    def usable_ids(self) -> Tensor:
        """Int64 global ids of the usable rows."""
        ids_N = self.ids.of(slice(0, len(self.rows_ND)))
        return ids_N if self.status_N is None else ids_N[self.status_N == 0]

    def tiles(self, tile_rows: int) -> Iterator[Tensor]:
        """The usable rows in order, at most ``tile_rows`` at a time: views when all are usable, else copies."""
        usable_U = None if self.status_N is None else (self.status_N == 0).nonzero()[:, 0]
        for start in range(0, len(self.rows_ND) if usable_U is None else len(usable_U), tile_rows):
            tile = slice(start, start + tile_rows)
            yield self.rows_ND[tile] if usable_U is None else self.rows_ND[usable_U[tile]]


@dataclass(frozen=True, eq=False)
class Block:
    """A run of rows that is summed in one piece: ``number`` counts all blocks, ``num_rows`` the usable rows in it.

    ``weights_N`` int64: how many rows each usable row stands for, one when None.
    """

    number: int
    num_rows: int
    pieces: tuple[Piece, ...]
    resident_ND: Tensor | None = None
    weights_N: Tensor | None = None

    @classmethod
    def of(cls, number: int, pieces: Sequence[Piece]) -> Self:
        """The block of these pieces, in order; pieces whose rows are all usable forget their status."""
        counts = [piece.num_usable() for piece in pieces]
        whole = [
            replace(piece, status_N=None) if count == len(piece.rows_ND) else piece
            for piece, count in zip(pieces, counts, strict=True)
        ]
        return cls(number, sum(counts), tuple(whole))

    @property
    def dim(self) -> int:
        """D; a block has at least one piece."""
        return self.pieces[0].rows_ND.shape[1]

    @property
    def weight(self) -> int:
        """How many rows the usable rows stand for."""
        return self.num_rows if self.weights_N is None else int(self.weights_N.sum())

    def tiles(self, tile_rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Consecutive ranges of at most ``tile_rows`` of the block's usable rows, with their float16 rows [B, D]."""
        start = 0
        pieces = self.pieces if self.resident_ND is None else (Piece(self.resident_ND, RowIds()),)
        for piece in pieces:
            for tile_BD in piece.tiles(tile_rows):
                yield slice(start, start + len(tile_BD)), tile_BD
                start += len(tile_BD)

    def row_ids(self) -> Tensor:
        """Int64 global ids of the usable rows."""
        return torch.cat([piece.usable_ids() for piece in self.pieces])

    def to(self, device: torch.device) -> Self:
        """The same block with its usable rows copied to the memory of ``device``."""
        if self.num_rows == 0:
            return self
        rows_ND = torch.cat([tile_BD.to(device) for _, tile_BD in self.tiles(self.num_rows)])
        return replace(self, resident_ND=rows_ND)


class Points:
    """The blocks of one rank: ``blocks``, ``num_rows`` usable rows in all (N), ``dim`` (D). May have no block.

    ``weight`` is how many rows they stand for: N, unless blocks have weights.
    """

    def __init__(self, blocks: Sequence[Block], dim: int) -> None:
        self.blocks = tuple(blocks)
        self.dim = dim
        self.num_rows = sum(block.num_rows for block in self.blocks)
        self.weight = sum(block.weight for block in self.blocks)

    def tiles(self, tile_rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Consecutive row ranges of at most ``tile_rows`` of all blocks with their float16 rows [B, D]."""
        start = 0
        for block in self.blocks:
            for rows, tile_BD in block.tiles(tile_rows):
                yield slice(start + rows.start, start + rows.stop), tile_BD
            start += block.num_rows

    def to(self, device: torch.device, *, budget_bytes: int) -> "Points":
        """Copy the first blocks that fit in ``budget_bytes`` to ``device``; the others stay where they are.

        For a GPU. On the CPU the page cache keeps mapped rows, and gives them back when memory is short.
        """
        blocks = []
        for block in self.blocks:
            budget_bytes -= 2 * block.num_rows * self.dim
            blocks.append(block.to(device) if budget_bytes >= 0 else block)
        return Points(blocks, self.dim)


class ArrayPoints(Points):
    """Rows of an array: ``points_ND`` are its float16 unit rows, cut into blocks number ``first_block``, ... .

    Takes float16, float32 or float64 rows; ``row_ids`` are first_row, first_row + 1, ... unless given. On several ranks
    the ids must differ between ranks. Raises DataError naming the row that holds NaN, an infinity or only zeros.
    """

    def __init__(
        self,
        points_ND: Rows,
        *,
        first_row: int = 0,
        row_ids: Rows | None = None,
        first_block: int = 0,
        block_rows: int = BLOCK_ROWS,
    ) -> None:
        rows_ND = float_matrix(points_ND)
        ids = _row_ids(row_ids, first_row, len(rows_ND))
        self._hold(_unit_rows(rows_ND, ids), ids, first_block, block_rows)

    @classmethod
    def from_unit_rows(
        cls,
        points_ND: Rows,
        *,
        first_row: int = 0,
        row_ids: Rows | None = None,
        first_block: int = 0,
        block_rows: int = BLOCK_ROWS,
    ) -> Self:
        """Take float16 unit rows as they are, without a copy; raise DataError naming a row that is not one."""
        rows_ND = float_matrix(points_ND)
        points = cls.__new__(cls)
        points._hold(rows_ND, _row_ids(row_ids, first_row, len(rows_ND)), first_block, block_rows)
        for block in points.blocks:
            check_unit_rows(block)
        return points

    def _hold(self, points_ND: Tensor, ids: RowIds, first_block: int, block_rows: int) -> None:
        pieces = [
            Piece(points_ND[start : start + block_rows], ids.after(start))
            for start in range(0, len(points_ND), block_rows)
        ]
        blocks = [Block.of(number, [piece]) for number, piece in enumerate(pieces, first_block)]
        super().__init__(blocks, points_ND.shape[1])
        self.points_ND = points_ND


def float_matrix(points_ND: Rows) -> Tensor:
    """Rows as a CPU tensor over the same memory; raises DataError unless they are [rows, dims] of floats."""
    rows_ND = points_ND if isinstance(points_ND, Tensor) else _tensor(np.asarray(points_ND))
    if rows_ND.ndim != 2 or rows_ND.shape[1] == 0 or rows_ND.dtype not in (torch.float16, torch.float32, torch.float64):
        raise DataError(
            f"points are {rows_ND.dtype} of shape {tuple(rows_ND.shape)}; expected [rows, dims] of float16, float32 or "
            "float64: convert or reshape them, an empty rank passes [0, dims]"
        )
    return rows_ND.detach().cpu()


def _tensor(array: NDArray[np.floating]) -> Tensor:
    if array.flags.writeable or not array.flags.c_contiguous or array.size == 0:
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    # torch.from_numpy warns about read-only memory, such as a memory map; Arrow hands it over without a copy
    return from_dlpack(pa.array(array.reshape(-1))).view(array.shape)


def _row_ids(row_ids: Rows | None, first_row: int, num_rows: int) -> RowIds:
    if row_ids is None:
        return RowIds(first_row)
    ids_N = torch.as_tensor(np.array(row_ids)) if not isinstance(row_ids, Tensor) else row_ids
    assert ids_N.shape == (num_rows,), f"{tuple(ids_N.shape)} row ids for {num_rows} rows"
    assert not ids_N.is_floating_point(), f"row ids are {ids_N.dtype}"
    return RowIds(given_N=ids_N.long())


def finite_norms(rows_ND: Tensor, row_ids_N: Tensor, what: str = "row") -> Tensor:
    """Lengths of the rows in float64; raises DataError naming the first that has no direction."""
    norms_N = torch.cat([norms(tile_BD.double()) for tile_BD in torch.split(rows_ND, _NORM_TILE_ROWS)])
    bad_N = ~(norms_N.isfinite() & (norms_N > 0))
    if bad_N.any():
        first = int(bad_N.nonzero()[0])
        content = "only zeros" if norms_N[first] == 0 else "NaN or infinite values"
        raise DataError(
            f"{what} {int(row_ids_N[first])} holds {content}; expected a direction: leave out rows whose status is not "
            "0"
        )
    return norms_N


def check_unit_rows(block: Block) -> None:
    """Raise DataError naming a usable row of the block that is not a float16 unit row."""
    row_ids_N = block.row_ids()
    for rows, tile_BD in block.tiles(_NORM_TILE_ROWS):
        # a float32 length is off by less than D roundoffs; it settles nearly every row, 4 to 39 times as fast
        surely = UNIT_TOLERANCE - block.dim * _FLOAT32_ROUNDOFF
        lengths_B = torch.linalg.vector_norm(tile_BD, dim=1, dtype=torch.float32)
        if tile_BD.dtype == torch.float16 and ((lengths_B - 1).abs() <= surely).all():
            continue
        norms_B = finite_norms(tile_BD, row_ids_N[rows])
        other_B = ~_are_unit(tile_BD, norms_B)
        if other_B.any():
            first = int(other_B.nonzero()[0])
            raise DataError(
                f"row {int(row_ids_N[rows][first])} is {tile_BD.dtype} of length {float(norms_B[first]):.6f}; expected "
                "a float16 row of length 1 within 2^-10: normalise it in float32 or float64, then round to float16"
            )


def _unit_rows(rows_ND: Tensor, ids: RowIds) -> Tensor:
    # float16 rows are copied only when one of them must be normalised
    unit_ND = rows_ND if rows_ND.dtype == torch.float16 else torch.empty(rows_ND.shape, dtype=torch.float16)
    for start in range(0, len(rows_ND), _NORM_TILE_ROWS):
        tile = slice(start, min(start + _NORM_TILE_ROWS, len(rows_ND)))
        norms_B = finite_norms(rows_ND[tile], ids.of(tile))
        kept_B = _are_unit(rows_ND[tile], norms_B)
        if kept_B.all():
            continue
        if unit_ND is rows_ND:
            unit_ND = rows_ND.clone()
        normalised_BD = to_float16(rows_ND[tile].double() / norms_B[:, None])
        unit_ND[tile] = torch.where(kept_B[:, None], rows_ND[tile].half(), normalised_BD)
    return unit_ND


def _are_unit(rows_ND: Tensor, norms_N: Tensor) -> Tensor:
    if rows_ND.dtype != torch.float16:
        return torch.zeros(len(rows_ND), dtype=torch.bool)
    return (norms_N - 1).abs() <= UNIT_TOLERANCE
