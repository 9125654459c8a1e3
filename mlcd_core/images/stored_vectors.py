"""Reads vectors by location (a row's number over all files, in order) from mapped .npy files or Parquet row groups.

Few files are kept open and few row groups in memory: units that follow each other read the same ones, and threads may
read at the same time.

B locations, R rows of one source, D dims.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mlcd_core.images.adopted_files import VectorFile, map_npy
from mlcd_core.images.parquet_vectors import Vectors, read_vectors, row_group_rows

# a mapped file holds a descriptor, of which a process commonly has 1,024; a row group of vectors can have gigabytes
OPEN_FILES, KEPT_ROW_GROUPS = 64, 2


@dataclass(frozen=True)
class _Source:
    """Rows that are read together: a .npy file, or one row group of a Parquet file."""

    file: VectorFile
    row_group: int
    first: int


class StoredVectors:
    """The vectors of these files, of which those without rows may have no dims."""

    def __init__(self, files: Sequence[VectorFile]) -> None:
        self.dim = max(file.dim for file in files)
        self._sources = list(_sources(files))
        self._firsts = np.array([source.first for source in self._sources])
        self._map: Callable[[str], np.ndarray] = lru_cache(OPEN_FILES)(map_npy)
        self._row_group: Callable[[str, str, int, int], Vectors] = lru_cache(KEPT_ROW_GROUPS)(read_vectors)

    def read(self, locations_B: np.ndarray) -> Vectors:
        """The vectors at these locations, float64 [B, D]."""
        vectors_BD = np.zeros((len(locations_B), self.dim), np.float64)
        missing_B = np.zeros(len(locations_B), bool)
        # side by side in a source, and on disk, however the keys lie
        order = np.argsort(locations_B, kind="stable")
        source_B = np.searchsorted(self._firsts, locations_B[order], side="right") - 1
        for number in np.unique(source_B):
            rows = order[source_B == number]
            found = self._read_source(self._sources[number], locations_B[rows])
            vectors_BD[rows], missing_B[rows] = found.vectors_ND, found.missing_N
        return Vectors(vectors_BD, missing_B)

    def place(self, location: int) -> str:
        """Where a person finds that row."""
        source = self._sources[int(np.searchsorted(self._firsts, location, side="right")) - 1]
        group = f"row group {source.row_group} of " if source.file.vector_column else ""
        return f"row {location - source.first} of {group}{source.file.vectors}"

    def _read_source(self, source: _Source, locations_R: np.ndarray) -> Vectors:
        rows_R = locations_R - source.first
        if not source.file.vector_column:
            return Vectors(self._map(source.file.vectors)[rows_R], np.zeros(len(rows_R), bool))
        group = self._row_group(source.file.vectors, source.file.vector_column, source.row_group, self.dim)
        return Vectors(group.vectors_ND[rows_R], group.missing_N[rows_R])


def _sources(files: Sequence[VectorFile]) -> Iterator[_Source]:
    """Those that have rows, in order."""
    first = 0
    for file in files:
        lengths = row_group_rows(file.vectors) if file.vector_column else [file.rows]
        for number, rows in enumerate(lengths):
            if rows:
                yield _Source(file, number, first)
            first += rows
