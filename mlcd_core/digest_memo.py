"""Remembers what input files are and hold, by path, size and time (on S3 the ETag), outside the root.

To read them again takes hours. A small SQLite database. What is new is written in groups, since each commit syncs the
disk: one by one, 40,000 small files took 90 s of waiting. A kill loses the last group, which is read again.
"""

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self

from mlcd_core.errors import StoreError

GROUP_FILES, GROUP_BYTES = 256, 1 << 30


@dataclass(frozen=True)
class Remembered:
    """What is known of a file that has not changed since: its digest, and its row groups or why it has none."""

    digest: str
    row_groups: tuple[int, ...]
    error: str = ""


class DigestMemo:
    """A context manager around the database at ``path``; what is new is written at the latest when it ends.

    Raises StoreError when the database cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._new: list[tuple[str, int, str, str, str, str]] = []
        self._new_bytes = 0

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._path, timeout=30, isolation_level=None)
            # another name than the table of earlier versions, which knew no row groups
            self._database.execute(
                "create table if not exists files (path text primary key, bytes integer, stamp text,"
                " digest text, row_groups text, error text)"
            )
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with closing(self._database):
            self._write()

    def get(self, path: str, num_bytes: int, stamp: str) -> Remembered | None:
        """What is known of the file at ``path`` if it has still this size and ``stamp``: its time, or its ETag."""
        try:
            found = self._database.execute(
                "select digest, row_groups, error from files where path = ? and bytes = ? and stamp = ?",
                (path, num_bytes, stamp),
            ).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return Remembered(found[0], row_groups_of(found[1]), found[2]) if found else None

    def put(self, path: str, num_bytes: int, stamp: str, known: Remembered) -> None:
        """Remember a file that was read when it had this size and stamp."""
        self._new.append((path, num_bytes, stamp, known.digest, text_of(known.row_groups), known.error))
        self._new_bytes += num_bytes
        if len(self._new) >= GROUP_FILES or self._new_bytes >= GROUP_BYTES:
            self._write()

    def _write(self) -> None:
        if not self._new:
            return
        try:
            self._database.execute("begin immediate")
            self._database.executemany("insert or replace into files values (?, ?, ?, ?, ?, ?)", self._new)
            self._database.execute("commit")
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        self._new, self._new_bytes = [], 0

    def _unusable(self, error: Exception) -> StoreError:
        return StoreError(
            f"the memory of shard digests {self._path} cannot be used: {error}; delete it, or set XDG_CACHE_HOME to a "
            "writable folder"
        )


def text_of(row_groups: tuple[int, ...]) -> str:
    """Row groups as text with equal neighbours counted: (100, 100, 57) is ``100x2,57``."""
    runs = [(rows, len(list(same))) for rows, same in groupby(row_groups)]
    return ",".join(f"{rows}x{times}" if times > 1 else f"{rows}" for rows, times in runs)


@lru_cache(4096)  # most shards of a data set are cut alike: 40,000 tuples would take their memory and time
def row_groups_of(text: str) -> tuple[int, ...]:
    """The row groups that ``text_of`` wrote."""
    runs = [run.partition("x") for run in text.split(",") if run]
    return tuple(rows for size, _, times in runs for rows in [int(size)] * int(times or 1))


def default_memo() -> Path:
    """Where digests are remembered: ``mlcd/digests.sqlite`` in the user's cache folder."""
    return cache_folder() / "digests.sqlite"


def cache_folder() -> Path:
    """``mlcd`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlcd"
