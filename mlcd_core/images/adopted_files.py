"""Finds embeddings that were made elsewhere, and what their files say of themselves before a vector is read.

Two layouts. That of clip-retrieval: ``img_emb/img_emb_N.npy`` and ``metadata/metadata_N.parquet``, where row i of one
is row i of the other. Or Parquet files that hold a key and a vector in each row. Local files only: vectors are mapped,
or read in pieces again and again.
"""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mlcd_core.errors import ConfigError, DataError
from mlcd_core.images.parquet_vectors import open_columns, parquet_dim, read_keys
from mlcd_core.objects import is_s3

_NPY, _PARQUET = ".npy", ".parquet"
_VECTORS, _KEYS = "img_emb", "metadata"


@dataclass(frozen=True)
class VectorFile:
    """Vectors, and the Parquet file with their keys: one file where both are columns (``vector_column`` is not empty).

    dim: 0 where no row has a vector.
    """

    vectors: str
    keys: str
    rows: int
    dim: int
    key_column: str
    vector_column: str = ""


def find_vector_files(vectors: str, *, key_column: str) -> tuple[VectorFile, ...]:
    """The files that ``vectors`` (a folder or a pattern) names, by name; their rows and dims agree.

    key_column: tried first, then ``key`` and ``image_path``. Raises ConfigError for an address that is none of a local
    file, DataError for files that are missing, unreadable, or do not belong together.
    """
    files = tuple(_described(path, key_column) for path in matching_vector_files(vectors))
    _check_dims(files)
    return files


def matching_vector_files(vectors: str) -> list[Path]:
    """The paths of the vectors, by name; they are not opened. Raises as ``find_vector_files``."""
    if not vectors:
        raise ConfigError("embed.embedder=adopted has no vectors; set embed.vectors to the folder or pattern of them")
    if is_s3(vectors):
        raise ConfigError(
            f"embed.vectors={vectors}: adopted vectors are read from local files; copy them to a disk first"
        )
    place = Path(vectors).expanduser()
    found = _in_folder(place) if place.is_dir() else [Path(path) for path in sorted(glob.glob(str(place)))]
    kinds = sorted({path.suffix for path in found})
    if kinds not in ([_NPY], [_PARQUET]):
        got = f"files of {', '.join(kind or 'no suffix' for kind in kinds)}" if kinds else "nothing"
        raise DataError(
            f"embed.vectors={vectors} names {got}; expected {_VECTORS}/{_VECTORS}_N.npy beside "
            f"{_KEYS}/{_KEYS}_N.parquet, or Parquet files with a key and a vector column: give their folder or pattern"
        )
    if kinds == [_NPY]:
        _check_partners(found)
    return found


def all_keys(files: Sequence[VectorFile]) -> Iterator[pa.Array]:
    """The keys of all files in order, as strings, a row group at a time."""
    return (keys for file in files for keys in read_keys(file.keys, file.key_column))


def keys_path(vectors: Path) -> Path:
    """Where the keys of a file of vectors are."""
    if vectors.suffix == _PARQUET:
        return vectors
    number = vectors.stem.removeprefix(f"{_VECTORS}_")
    return vectors.parent.parent / _KEYS / f"{_KEYS}_{number}{_PARQUET}"


def map_npy(path: Path | str) -> "np.ndarray":
    """The array of a ``.npy`` file, mapped. Raises DataError when it is not a whole one; nothing is ever unpickled."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a whole .npy file of numbers: {error}; copy it again") from error
    if array.ndim != 2 or array.dtype.kind != "f":
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}; expected floats of shape (rows, dims): "
            "take it out of embed.vectors"
        )
    return array


def _in_folder(folder: Path) -> list[Path]:
    nested = folder / _VECTORS
    for place, suffix in ((nested, _NPY), (folder, _NPY), (folder, _PARQUET)):
        if found := sorted(place.glob(f"*{suffix}")):
            return found
    return []


def _check_partners(found: Sequence[Path]) -> None:
    """Every file of vectors has its keys; of a whole folder, every file of keys has its vectors too."""
    expected = [keys_path(path) for path in found]
    missing = [path for path in expected if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]} is missing: without it the vectors of {len(missing)} files have no keys; copy it"
        )
    whole_folder = sorted(found[0].parent.glob(f"*{_NPY}"))
    there = sorted(expected[0].parent.glob(f"{_KEYS}_*{_PARQUET}"))
    if whole_folder == list(found) and len(there) != len(found):
        raise DataError(
            f"{found[0].parent} has {len(found)} .npy files, {expected[0].parent} {len(there)} .parquet files; "
            "expected one of each per number: copy what is missing"
        )


def _described(path: Path, key_column: str) -> VectorFile:
    keys = keys_path(path)
    columns = open_columns(keys, key_column=key_column, with_vectors=path == keys)
    if path == keys:
        dim = parquet_dim(keys, columns.vector_column)
        return VectorFile(str(path), str(keys), columns.rows, dim, columns.key_column, columns.vector_column)
    rows, dim = map_npy(path).shape
    if rows != columns.rows:
        raise DataError(
            f"{path} has {rows:,} vectors, {keys} {columns.rows:,} keys; row i of one is row i of the other, so they "
            "are not of one run: copy both again"
        )
    return VectorFile(str(path), str(keys), rows, dim, columns.key_column)


def _check_dims(files: Sequence[VectorFile]) -> None:
    first = next((file for file in files if file.dim), None)
    if first is None:
        raise DataError(f"{files[0].vectors} and all others of embed.vectors hold no vector at all; give other files")
    for file in files:
        if file.dim not in (0, first.dim):
            raise DataError(
                f"{file.vectors} has vectors of {file.dim} dims, {first.vectors} of {first.dim}; expected one model's: "
                "take those of the other out"
            )
