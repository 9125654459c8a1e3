"""Embeddings that were made elsewhere become the embeddings of this data: every row's vector is looked up by its key.

Rows are joined by key, never by position over files: other tools drop bad images and deal rows out in their own order.
Vectors need not be normalised: they are, in float64, before they are rounded to float16. What the files hold is known
by its content, so moved files are the same vectors and a changed byte is another stage.

B keys of a look-up, D dims.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlcd_core.digest_memo import DigestMemo, Remembered, default_memo
from mlcd_core.errors import ConfigError, DataError, StageFailedError
from mlcd_core.identity import fingerprint
from mlcd_core.images.adopted_files import (
    VectorFile,
    all_keys,
    find_vector_files,
    keys_path,
    map_npy,
    matching_vector_files,
)
from mlcd_core.images.adopted_twins import check_twins
from mlcd_core.images.key_index import ABSENT, KeyIndex, build_key_index
from mlcd_core.images.parquet_vectors import first_vectors
from mlcd_core.images.stored_vectors import StoredVectors
from mlcd_core.specs import EmbedSpec
from mlcd_core.tables import RowStatus

_SAMPLE_ROWS, _SAMPLE_KEYS = 1_024, 3


@dataclass(frozen=True)
class AdoptedSource:
    """What there is to adopt. norms: lowest and highest of a sample; others than 1 are normalised when read."""

    files: int
    rows: int
    dim: int
    norms: tuple[float, float]


@dataclass(frozen=True)
class AdoptedRows:
    """``embeddings_ND`` float16 unit rows, zero where ``status_N`` (int8 RowStatus) is NO_VECTOR or NOT_FINITE."""

    embeddings_ND: np.ndarray
    status_N: np.ndarray


def adopted_digest(vectors: str, *, expected: str = "", memo: Path | None = None) -> str:
    """Identity of the vectors and keys that ``vectors`` names: sha256 over the contents of their files, by name.

    memo: the database that remembers digests of files that have not changed since; the user's own by default.
    Raises ConfigError when the identity is not the expected one, if one is; else as ``find_vector_files``.
    """
    with DigestMemo(memo or default_memo()) as digests:
        digest = fingerprint(
            [[_sha256(path, digests), _sha256(keys_path(path), digests)] for path in matching_vector_files(vectors)]
        )
    if expected and digest != expected:
        raise ConfigError(
            f"the vectors of {vectors} have the digest {digest}, expected embed.weights_sha256={expected}: they "
            "changed, or embed.vectors names others; give the right ones, or clear embed.weights_sha256 to take these"
        )
    return digest


def check_adopted(vectors: str, *, key_column: str = "key", keys: Sequence[str] = ()) -> AdoptedSource:
    """Read headers, footers and a sample, before any worker is started.

    keys: some of the data's, of its first shard say; DataError when not one of them has a vector.
    Raises ConfigError and DataError as ``find_vector_files``.
    """
    files = find_vector_files(vectors, key_column=key_column)
    if keys:
        _check_common_key(files, keys, vectors)
    sample = _sample(next(file for file in files if file.rows and file.dim))
    norms = np.linalg.norm(sample[np.isfinite(sample).all(axis=1)], axis=1)
    lowest, highest = (float(norms.min()), float(norms.max())) if len(norms) else (0.0, 0.0)
    return AdoptedSource(
        files=len(files),
        rows=sum(file.rows for file in files),
        dim=max(file.dim for file in files),
        norms=(lowest, highest),
    )


def open_adopted(spec: EmbedSpec, vectors: str) -> "AdoptedVectors":
    """Open the vectors that a spec adopts and index their keys: 24 bytes a key.

    Raises ConfigError when they are not those of ``spec.weights_sha256``, DataError when one key has two vectors.
    """
    adopted_digest(vectors, expected=spec.weights_sha256)
    files = find_vector_files(vectors, key_column=spec.key_column)
    index = build_key_index(all_keys(files), num_keys=sum(file.rows for file in files))
    stored = StoredVectors(files)
    check_twins(index, stored, files)
    return AdoptedVectors(index, stored)


class AdoptedVectors:
    """Looks vectors up by key; several threads may."""

    def __init__(self, index: KeyIndex, stored: StoredVectors) -> None:
        self.dim = stored.dim
        self._index = index
        self._stored = stored

    def lookup(self, keys: Sequence[str]) -> AdoptedRows:
        """One row per key, in their order. A key without a vector is NO_VECTOR; a zero or infinite one NOT_FINITE.

        Raises StageFailedError when the vectors cannot be read: a DataError would be taken for a fault of the shard.
        """
        location_B = self._index.find(keys)
        status_B = np.full(len(keys), RowStatus.NO_VECTOR, np.int8)
        embeddings_BD = np.zeros((len(keys), self.dim), np.float16)
        known = np.flatnonzero(location_B != ABSENT)
        try:
            found = self._stored.read(location_B[known])
        except DataError as error:
            raise StageFailedError(f"embed.vectors: {error}") from error
        known, vectors_KD = known[~found.missing_N], found.vectors_ND[~found.missing_N]
        with np.errstate(over="ignore", invalid="ignore"):
            norm_K = np.sqrt(np.square(vectors_KD).sum(axis=1))
        good_K = np.isfinite(norm_K) & (norm_K > 0)
        status_B[known] = np.where(good_K, RowStatus.OK, RowStatus.NOT_FINITE)
        embeddings_BD[known[good_K]] = vectors_KD[good_K] / norm_K[good_K, None]
        return AdoptedRows(embeddings_BD, status_B)


def _sha256(path: Path, digests: DigestMemo) -> str:
    # a name of its own: as a shard, the same file is remembered with its row groups
    name, info = f"vectors:{path.resolve()}", path.stat()
    stamp = str(info.st_mtime_ns)
    known = digests.get(name, info.st_size, stamp)
    if known is None:
        with open(path, "rb") as file:
            known = Remembered(hashlib.file_digest(file, "sha256").hexdigest(), ())
        digests.put(name, info.st_size, stamp, known)
    return known.digest


def _check_common_key(files: Sequence[VectorFile], keys: Sequence[str], vectors: str) -> None:
    wanted = pa.array(keys, pa.string())
    seen: list[str] = []
    for there in all_keys(files):
        if pc.any(pc.is_in(there, wanted)).as_py():
            return
        seen += there.drop_null()[: _SAMPLE_KEYS - len(seen)].to_pylist()
    raise DataError(
        f"no key of the data has a vector in {vectors}: the data has {', '.join(keys[:_SAMPLE_KEYS])}; the vectors "
        f"have {', '.join(seen) or 'no keys'}; set embed.key_column to the column that both share"
    )


def _sample(file: VectorFile) -> np.ndarray:
    if not file.vector_column:
        return np.asarray(map_npy(file.vectors)[:_SAMPLE_ROWS], np.float64)
    found = first_vectors(file.vectors, file.vector_column, file.dim)
    return np.asarray(found.vectors_ND[~found.missing_N], np.float64)
