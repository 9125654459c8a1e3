"""Where each of hundreds of millions of keys stands, in 24 bytes a key.

A dictionary of strings takes ten times that. Kept are two 63-bit hashes of a key and its location (a number of the
caller's), sorted by the first hash. The second stands for the comparison of the key itself: reading keys back would
read every file for every shard where vectors were dealt out round robin, as clip-retrieval does. Two of a billion keys
share both hashes with a chance below 1e-19.

N keys of the index, B keys of a look-up.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from mlcd_core.hashing import splitmix64

ABSENT = -1


@dataclass(frozen=True)
class KeyIndex:
    """Sorted by hash, check and location; the same key twice stands twice, the lower location first."""

    hash_N: np.ndarray
    check_N: np.ndarray
    location_N: np.ndarray

    def find(self, keys: Sequence[str]) -> np.ndarray:
        """The lowest location of each key, int64 [B]; ABSENT for a key that is not there."""
        hash_B, check_B = key_hashes(pa.array(keys, pa.string()))
        place_B = np.searchsorted(self.hash_N, hash_B)
        found_B = np.full(len(keys), ABSENT, np.int64)
        undecided = np.arange(len(keys))
        # a second round only where another key has the same first hash
        while len(undecided):
            undecided = undecided[place_B[undecided] < len(self.hash_N)]
            undecided = undecided[self.hash_N[place_B[undecided]] == hash_B[undecided]]
            equal = self.check_N[place_B[undecided]] == check_B[undecided]
            found_B[undecided[equal]] = self.location_N[place_B[undecided[equal]]]
            undecided = undecided[~equal]
            place_B[undecided] += 1
        return found_B

    def twins(self) -> np.ndarray:
        """Pairs of locations that hold the same key, int64 [pairs, 2]."""
        first = np.flatnonzero((self.hash_N[1:] == self.hash_N[:-1]) & (self.check_N[1:] == self.check_N[:-1]))
        return np.stack([self.location_N[first], self.location_N[first + 1]], axis=1)


def build_key_index(keys: Iterable[pa.Array], *, num_keys: int) -> KeyIndex:
    """Index string arrays that follow each other; a key's location is its position over all. Nulls are left out.

    num_keys: of all arrays together, nulls included. Sorting takes 16 bytes a key for a while.
    """
    hash_N, check_N, location_N = (np.empty(num_keys, np.int64) for _ in range(3))
    start = filled = 0
    for array in keys:
        present = np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False))
        rows = slice(filled, filled + len(present))
        hash_N[rows], check_N[rows] = key_hashes(array.drop_null())
        location_N[rows] = start + present
        start, filled = start + len(array), rows.stop
    assert start == num_keys, f"{start} keys, expected {num_keys}"
    index = KeyIndex(hash_N[:filled], check_N[:filled], location_N[:filled])
    _reorder(index, slice(0, filled), np.argsort(index.hash_N))
    _sort_equal_hashes(index)
    return index


def key_hashes(keys: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Two int64 hashes per string; they depend on nothing but its bytes. Nulls are not allowed."""
    assert keys.null_count == 0
    binary = keys.cast(pa.large_binary())
    _, offsets, content = binary.buffers()
    offsets_N = np.frombuffer(offsets, np.int64)[binary.offset : binary.offset + len(binary) + 1]
    if len(binary) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    data = np.frombuffer(content, np.uint8)[offsets_N[0] : offsets_N[-1]] if content else np.zeros(0, np.uint8)
    starts_N, lengths_N = offsets_N[:-1] - offsets_N[0], np.diff(offsets_N)
    states = [splitmix64(seed, torch.from_numpy(lengths_N)) for seed in (0, 1)]
    for first in range(0, int(lengths_N.max()), 8):
        words_N = torch.from_numpy(_words(data, starts_N + first, lengths_N - first))
        goes_on_N = torch.from_numpy(lengths_N > first)
        states = [torch.where(goes_on_N, splitmix64(state, words_N), state) for state in states]
    return states[0].numpy(), states[1].numpy()


def _words(data: np.ndarray, starts_N: np.ndarray, left_N: np.ndarray) -> np.ndarray:
    """Up to eight bytes from each start as an int64; bytes past the end of a key count as 0."""
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    eights = np.lib.stride_tricks.sliding_window_view(padded, 8)
    bytes_N8 = eights[np.minimum(starts_N, len(data))]
    kept = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
    words_N: np.ndarray = bytes_N8.copy().view("<u8")[:, 0] & kept[np.clip(left_N, 0, 8)]
    return words_N.view(np.int64)


def _sort_equal_hashes(index: KeyIndex) -> None:
    """Order keys of one hash by check and location; there are few, and they stand side by side."""
    second = np.flatnonzero(index.hash_N[1:] == index.hash_N[:-1]) + 1
    rows = np.union1d(second - 1, second)
    order = np.lexsort((index.location_N[rows], index.check_N[rows], index.hash_N[rows]))
    _reorder(index, rows, rows[order])


def _reorder(index: KeyIndex, rows: slice | np.ndarray, order: np.ndarray) -> None:
    """In place, one column after the other."""
    for column_N in (index.hash_N, index.check_N, index.location_N):
        column_N[rows] = column_N[order]
