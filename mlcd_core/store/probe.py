"""Asks a store whether it keeps the promises that the pipeline builds on; `mlcd doctor --root` prints the answer.

A store that forgets put-if-absent lets two writers both believe they were first, and one that lists late makes finished
work look missing. Both look fine in a small run, so they are tried: with small objects below ``.mlcd-probe/``, which
are gone afterwards.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from statistics import median
from typing import Literal

from mlcd_core.errors import StoreError
from mlcd_core.store.files import FileInfo, Files, LocalFiles

RACERS = 8
NUM_TIMED = 5
TIMED = "timed"
CONTENT = b"written by mlcd doctor; may be deleted\n"
UNCONDITIONAL = (
    "the store ignores If-None-Match, and two runs at once could replace each other's records; "
    "use another store, or never start two runs on one root"
)


@dataclass(frozen=True)
class Finding:
    """What one check found; ``text`` is for people."""

    check: str
    level: Literal["ok", "warning", "error"]
    text: str


@dataclass(frozen=True)
class StoreProbe:
    """What a store was found to do. The latencies are medians in milliseconds, None when it could not be used."""

    address: str
    findings: tuple[Finding, ...]
    put_ms: float | None
    get_ms: float | None

    @property
    def usable(self) -> bool:
        """Whether the pipeline's promises hold on this store."""
        return all(finding.level != "error" for finding in self.findings)


def probe_store(files: Files, *, clock: Callable[[], float] = time.perf_counter) -> StoreProbe:
    """Try what the pipeline needs of a store. Writes below ``.mlcd-probe/``, and leaves nothing there.

    A store that cannot be used at all gives one finding with the error's text; nothing is raised for it.
    """
    findings: list[Finding] = []
    put_s: list[float] = []
    get_s: list[float] = []
    try:
        with _folder(files) as folder:
            for name, check in CHECKS.items():
                findings.append(check(files, f"{folder}/{name}"))
            for _ in range(NUM_TIMED):
                put_s.append(_seconds(clock, lambda: files.put(f"{folder}/{TIMED}", CONTENT)))
                get_s.append(_seconds(clock, lambda: files.read(f"{folder}/{TIMED}")))
    except StoreError as error:
        findings.append(Finding("use", "error", str(error)))
    return StoreProbe(files.uri(""), tuple(findings), _median_ms(put_s), _median_ms(get_s))


@contextmanager
def _folder(files: Files) -> Iterator[str]:
    """A folder of this probe's own. What it wrote is deleted by name: a listing is one of the things that are tried."""
    folder = f".mlcd-probe/{uuid.uuid4().hex}"
    try:
        yield folder
    finally:
        for name in (*CHECKS, TIMED):
            files.delete(f"{folder}/{name}")
        if isinstance(files, LocalFiles):
            with suppress(OSError):  # another probe is at work in the same folder
                (files.root / folder).rmdir()
                (files.root / folder).parent.rmdir()


def _reads_writes(files: Files, path: str) -> Finding:
    for content in (CONTENT, CONTENT * 2):
        files.put(path, content)
        if files.read(path) != content:
            return Finding("read", "error", "what was just written is read as something else: no stage could trust it")
    return Finding("read", "ok", "what is written is read at once")


def _lists_writes(files: Files, path: str) -> Finding:
    files.put(path, CONTENT)
    if FileInfo(path, len(CONTENT)) not in _beside(files, path):
        return Finding(
            "list", "error", "what was just written is not listed: finished work would be done again; use another store"
        )
    return Finding("list", "ok", "what is written is listed at once")


def _refuses_second(files: Files, path: str) -> Finding:
    first, second = files.create(path, CONTENT), files.create(path, b"second\n")
    if not first:
        return Finding("create", "error", "a new object was refused as if it existed; use another store")
    if second or files.read(path) != CONTENT:
        return Finding("create", "warning", f"a second create of one name was not refused: {UNCONDITIONAL}")
    return Finding("create", "ok", "a second create of one name is refused (If-None-Match is honoured)")


def _one_winner(files: Files, path: str) -> Finding:
    with ThreadPoolExecutor(RACERS) as pool:
        wins = list(pool.map(lambda racer: files.create(path, f"racer {racer}\n".encode()), range(RACERS)))
    if sum(wins) != 1 or files.read(path) != f"racer {wins.index(True)}\n".encode():
        return Finding(
            "race", "warning", f"of {RACERS} writers at once {sum(wins)} were told they won: {UNCONDITIONAL}"
        )
    return Finding("race", "ok", f"of {RACERS} writers at once exactly one creates a name")


def _deletes(files: Files, path: str) -> Finding:
    files.put(path, CONTENT)
    files.delete(path)
    if files.read(path) is not None or path in {info.path for info in _beside(files, path)}:
        return Finding("delete", "warning", "a deleted object is still seen: old checkpoints will fill the store")
    return Finding("delete", "ok", "what is deleted is gone")


CHECKS: dict[str, Callable[[Files, str], Finding]] = {
    "read": _reads_writes,
    "list": _lists_writes,
    "create": _refuses_second,
    "race": _one_winner,
    "delete": _deletes,
}


def _beside(files: Files, path: str) -> list[FileInfo]:
    return files.list(path.rpartition("/")[0])


def _seconds(clock: Callable[[], float], act: Callable[[], object]) -> float:
    started = clock()
    act()
    return clock() - started


def _median_ms(seconds: list[float]) -> float | None:
    return 1000 * median(seconds) if seconds else None
