"""The rows that k-means works on: float16 unit vectors with the global ids of their rows.

Stored embeddings are unit rows already and must not move, since normalising a rounded vector again rounds it elsewhere.
So a float16 row whose length is 1 within float16 rounding is kept bit for bit; every other row is normalised in float64
and rounded to float16 once. Shapes: N rows, D dims.
"""

from collections.abc import Iterator
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from mlcd_core.errors import DataError
from mlcd_core.kmeans.exact import UNIT_TOLERANCE, norms, to_float16

Rows = NDArray[np.floating] | Tensor

_NORM_TILE_ROWS = 4096  # float64 copies are made of so many rows at a time


class ArrayPoints:
    """Rows in memory (or a memory map): ``points_ND`` float16 unit rows, ``row_ids_N`` their int64 global ids.

    Takes float16, float32 or float64 rows; ``row_ids`` are first_row, first_row + 1, ... unless given. On several ranks
    the ids must differ between ranks. Raises DataError naming the row that holds NaN, an infinity or only zeros.
    """

    def __init__(self, points_ND: Rows, *, first_row: int = 0, row_ids: Rows | None = None) -> None:
        rows_ND = float_matrix(points_ND)
        self.row_ids_N = _row_ids(row_ids, first_row, len(rows_ND))
        self.points_ND = _unit_rows(rows_ND, finite_norms(rows_ND, self.row_ids_N))

    @classmethod
    def from_unit_rows(cls, points_ND: Rows, *, first_row: int = 0, row_ids: Rows | None = None) -> Self:
        """Take float16 unit rows as they are, without a copy; raise DataError naming a row that is not one."""
        rows_ND = float_matrix(points_ND)
        points = cls.__new__(cls)
        points.row_ids_N = _row_ids(row_ids, first_row, len(rows_ND))
        _check_unit(rows_ND, points.row_ids_N)
        points.points_ND = rows_ND
        return points

    @property
    def num_rows(self) -> int:
        """N, the rows of this rank."""
        return self.points_ND.shape[0]

    @property
    def dim(self) -> int:
        """D."""
        return self.points_ND.shape[1]

    def tiles(self, tile_rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Consecutive row ranges of at most ``tile_rows`` with their float16 rows."""
        for start in range(0, self.num_rows, tile_rows):
            rows = slice(start, min(start + tile_rows, self.num_rows))
            yield rows, self.points_ND[rows]


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


def _row_ids(row_ids: Rows | None, first_row: int, num_rows: int) -> Tensor:
    if row_ids is None:
        return torch.arange(first_row, first_row + num_rows)
    ids_N = torch.as_tensor(np.array(row_ids)) if not isinstance(row_ids, Tensor) else row_ids
    assert ids_N.shape == (num_rows,), f"{tuple(ids_N.shape)} row ids for {num_rows} rows"
    assert not ids_N.is_floating_point(), f"row ids are {ids_N.dtype}"
    return ids_N.long()


def finite_norms(rows_ND: Tensor, row_ids_N: Tensor, what: str = "row") -> Tensor:
    """Lengths of the rows in float64; raises DataError naming the first that has no direction."""
    norms_N = torch.cat([norms(tile_BD.double()) for tile_BD in torch.split(rows_ND, _NORM_TILE_ROWS)])
    bad_N = ~(norms_N.isfinite() & (norms_N > 0))
    if bad_N.any():
        first = int(bad_N.nonzero()[0])
        content = "only zeros" if norms_N[first] == 0 else "NaN or infinite values"
        raise DataError(
            f"{what} {int(row_ids_N[first])} holds {content} ({int(bad_N.sum())} of {len(norms_N)}); expected a "
            "direction: leave out rows whose status is not 0"
        )
    return norms_N


def _unit_rows(rows_ND: Tensor, norms_N: Tensor) -> Tensor:
    kept_N = _are_unit(rows_ND, norms_N)
    if kept_N.all():
        return rows_ND.half()
    unit_ND = torch.empty(rows_ND.shape, dtype=torch.float16)
    for start in range(0, len(rows_ND), _NORM_TILE_ROWS):
        tile = slice(start, start + _NORM_TILE_ROWS)
        normalised_BD = to_float16(rows_ND[tile].double() / norms_N[tile, None])
        unit_ND[tile] = torch.where(kept_N[tile, None], rows_ND[tile].half(), normalised_BD)
    return unit_ND


def _check_unit(rows_ND: Tensor, row_ids_N: Tensor) -> None:
    norms_N = finite_norms(rows_ND, row_ids_N)
    other_N = ~_are_unit(rows_ND, norms_N)
    if other_N.any():
        first = int(other_N.nonzero()[0])
        raise DataError(
            f"row {int(row_ids_N[first])} is {rows_ND.dtype} of length {float(norms_N[first]):.6f}; expected a float16 "
            "row of length 1 within 2^-10: normalise it in float32 or float64, then round to float16"
        )


def _are_unit(rows_ND: Tensor, norms_N: Tensor) -> Tensor:
    if rows_ND.dtype != torch.float16:
        return torch.zeros(len(rows_ND), dtype=torch.bool)
    return (norms_N - 1).abs() <= UNIT_TOLERANCE
