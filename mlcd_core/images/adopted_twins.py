"""A key that stands twice among adopted vectors is fine while both are equal: then it does not matter which is read.

D dims; pairs are looked at in blocks.
"""

from collections.abc import Sequence

import numpy as np

from mlcd_core.errors import DataError
from mlcd_core.images.adopted_files import VectorFile, all_keys
from mlcd_core.images.key_index import KeyIndex
from mlcd_core.images.parquet_vectors import Vectors
from mlcd_core.images.stored_vectors import StoredVectors

BLOCK_PAIRS = 4_096


def check_twins(index: KeyIndex, stored: StoredVectors, files: Sequence[VectorFile]) -> None:
    """Raise DataError for the first key that has two different vectors, with both places."""
    pairs = index.twins()
    for first in range(0, len(pairs), BLOCK_PAIRS):
        block = pairs[first : first + BLOCK_PAIRS]
        differ = np.flatnonzero(~_equal(stored.read(block[:, 0]), stored.read(block[:, 1])))
        if len(differ):
            a, b = (int(location) for location in block[differ[0]])
            raise DataError(
                f"the key {_key_at(files, a)!r} has two different vectors: {stored.place(a)} and {stored.place(b)}; "
                "expected one: take the file that is wrong out of embed.vectors"
            )


def _equal(one: Vectors, other: Vectors) -> np.ndarray:
    """Row by row; NaN is equal to NaN."""
    same_ND = one.vectors_ND == other.vectors_ND
    same_ND |= np.isnan(one.vectors_ND) & np.isnan(other.vectors_ND)
    equal: np.ndarray = same_ND.all(axis=1) & (one.missing_N == other.missing_N)
    return equal


def _key_at(files: Sequence[VectorFile], location: int) -> str:
    for keys in all_keys(files):
        if location < len(keys):
            return str(keys[location].as_py())
        location -= len(keys)
    raise AssertionError(location)
