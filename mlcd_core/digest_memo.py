"""Remembers the sha256 of input files by path, size and modification time, outside the root: reading them takes hours.

A small SQLite database. New digests are written in groups, since each commit syncs the disk: one by one, 40,000 small
files took 90 s of waiting. A kill loses the last group, which is hashed again.
"""

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from mlcd_core.errors import StoreError

GROUP_FILES, GROUP_BYTES = 256, 1 << 30


@dataclass(frozen=True)
class Remembered:
    """What is known of a file that has not changed since."""

    sha256: str
    num_rows: int


class DigestMemo:
    """A context manager around the database at ``path``; what is new is written at the latest when it ends.

    Raises StoreError when the database cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._new: list[tuple[str, int, int, str, int]] = []
        self._new_bytes = 0

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._path, timeout=30, isolation_level=None)
            self._database.execute(
                "create table if not exists shards"
                " (path text primary key, bytes integer, mtime_ns integer, sha256 text, num_rows integer)"
            )
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with closing(self._database):
            self._write()

    def get(self, path: str, info: os.stat_result) -> Remembered | None:
        """What is known of the file at ``path`` if size and time are still those of ``info``."""
        found = self._database.execute(
            "select sha256, num_rows from shards where path = ? and bytes = ? and mtime_ns = ?",
            (path, info.st_size, info.st_mtime_ns),
        ).fetchone()
        return Remembered(*found) if found else None

    def put(self, path: str, info: os.stat_result, known: Remembered) -> None:
        """Remember a file that was read when ``info`` was its state."""
        self._new.append((path, info.st_size, info.st_mtime_ns, known.sha256, known.num_rows))
        self._new_bytes += info.st_size
        if len(self._new) >= GROUP_FILES or self._new_bytes >= GROUP_BYTES:
            self._write()

    def _write(self) -> None:
        if not self._new:
            return
        try:
            self._database.execute("begin immediate")
            self._database.executemany("insert or replace into shards values (?, ?, ?, ?, ?)", self._new)
            self._database.execute("commit")
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        self._new, self._new_bytes = [], 0

    def _unusable(self, error: Exception) -> StoreError:
        return StoreError(
            f"the memory of shard digests {self._path} cannot be used: {error}; delete it, or set XDG_CACHE_HOME to a "
            "writable folder"
        )


def default_memo() -> Path:
    """Where digests are remembered: ``mlcd/digests.sqlite`` in the user's cache folder."""
    return cache_folder() / "digests.sqlite"


def cache_folder() -> Path:
    """``mlcd`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlcd"
