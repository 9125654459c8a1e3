"""Reads keys and vectors from Parquet files that other tools wrote, one row group at a time.

A vector column is a list of floats, of fixed or of free length, in any precision. A row whose vector is null has none.
Every read opens the file anew, so threads share nothing.

N rows of a row group, D dims.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlcd_core.errors import DataError

KEY_COLUMNS = ("key", "image_path")
VECTOR_COLUMNS = ("embedding", "vector")


@dataclass(frozen=True)
class Columns:
    """What the footer says. vector_column: empty unless it was asked for."""

    key_column: str
    vector_column: str
    rows: int


@dataclass(frozen=True)
class Vectors:
    """``vectors_ND`` as stored; rows where ``missing_N`` is true had no vector and are zeros."""

    vectors_ND: np.ndarray
    missing_N: np.ndarray


def open_columns(path: Path, *, key_column: str, with_vectors: bool) -> Columns:
    """Find the key column, and the vector column if asked. Raises DataError, with the columns there are."""
    file = _open(path)
    schema = file.schema_arrow
    key = next((name for name in (key_column, *KEY_COLUMNS) if name in schema.names), None)
    if key is None:
        raise _no_column(path, schema, f"key column {' or '.join(dict.fromkeys((key_column, *KEY_COLUMNS)))}")
    return Columns(key, _vector_column(path, schema) if with_vectors else "", file.metadata.num_rows)


def parquet_dim(path: Path, column: str) -> int:
    """D of the first vector, or of the column's type; 0 where every row is null."""
    file = _open(path)
    kind = file.schema_arrow.field(column).type
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    for batch in _pieces(path, file, column):
        lengths = pc.list_value_length(batch.column(0)).drop_null()
        if len(lengths):
            return int(lengths[0].as_py())
    return 0


def row_group_rows(path: str) -> list[int]:
    """Rows of each row group."""
    metadata = _open(path).metadata
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def read_keys(path: str, column: str) -> Iterator[pa.Array]:
    """The keys as strings, a row group at a time, nulls where a row has none."""
    file = _open(path)
    for i in range(file.metadata.num_row_groups):
        yield _explained(path, lambda i=i: _strings(file.read_row_group(i, columns=[column])))


def read_vectors(path: str, column: str, row_group: int, dim: int) -> Vectors:
    """The vectors of a row group. Raises DataError for one of other dims."""
    table = _explained(path, lambda: _open(path).read_row_group(row_group, columns=[column]))
    return _to_matrix(table.column(0).combine_chunks(), dim, f"row group {row_group} of {path}")


def first_vectors(path: str, column: str, dim: int) -> Vectors:
    """The first thousand vectors or so, of a file that has rows."""
    batch = next(_pieces(path, _open(path), column))
    return _to_matrix(batch.column(0), dim, path)


def _strings(table: pa.Table) -> pa.Array:
    return table.column(0).combine_chunks().cast(pa.string())


def _to_matrix(lists: Any, dim: int, where: str) -> Vectors:
    missing_N = lists.is_null().to_numpy(zero_copy_only=False)
    lengths = pc.list_value_length(lists).drop_null().to_numpy()
    if (lengths != dim).any():
        row = int(np.flatnonzero(~missing_N)[np.flatnonzero(lengths != dim)[0]])
        raise DataError(
            f"the vector at row {row} of {where} has {int(lengths[lengths != dim][0])} dims, others have {dim}; "
            "expected one model's: take that file out of embed.vectors"
        )
    # null numbers within a vector become NaN, which the row's status then tells
    values = lists.drop_null().flatten().to_numpy(zero_copy_only=False)
    vectors_ND = np.zeros((len(lists), dim), values.dtype)
    vectors_ND[~missing_N] = values.reshape(-1, dim)
    return Vectors(vectors_ND, missing_N)


def _vector_column(path: Path, schema: pa.Schema) -> str:
    holders = [field.name for field in schema if _holds_vectors(field.type)]
    named = [name for name in VECTOR_COLUMNS if name in holders]
    if len(holders) == 1 or named:
        return (named or holders)[0]
    problem = f"; {', '.join(holders)} are all lists of floats: name one of them embedding" if holders else ""
    raise _no_column(path, schema, f"vector column (a list of floats){problem}")


def _holds_vectors(kind: pa.DataType) -> bool:
    is_list = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))


def _no_column(path: Path, schema: pa.Schema, what: str) -> DataError:
    there = ", ".join(f"{field.name} ({field.type})" for field in schema)
    return DataError(f"{path} has no {what}; its columns are {there}; write the files with such columns")


def _pieces(path: Path | str, file: pq.ParquetFile, column: str) -> Iterator[pa.RecordBatch]:
    batches = file.iter_batches(batch_size=1024, columns=[column])
    while (batch := _explained(path, lambda: next(batches, None))) is not None:
        yield batch


def _open(path: Path | str) -> pq.ParquetFile:
    return _explained(path, lambda: pq.ParquetFile(path))


def _explained(path: Path | str, read: Any) -> Any:
    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} cannot be read as Parquet: {first_line}; copy it again") from error
