"""Finds the image files and tars below a folder, with size and modification time; by scandir, for millions of files.

Links are followed, hidden names are skipped, and what is not packed is counted by suffix, so that nothing is left out
without a word. Names keep the undecodable bytes of the file system (surrogates); ``keys`` makes text of them.
"""

import os
import stat
from collections import Counter
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from mlcd_core.errors import DataError

# what ``images.decode`` has decoders for
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
TAR_SUFFIX = ".tar"
UNKNOWN_BYTES = -1


class FoundFile(NamedTuple):  # a million of these: frozen dataclasses take four times as long to make
    """``name`` is relative to the scanned folder, with ``/``. A file whose state cannot be read has -1 bytes."""

    name: str
    path: str
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Found:
    """Images and tars in name order; ``ignored``: suffix (or ``hidden``, ``no suffix``) -> files that are neither."""

    images: list[FoundFile]
    tars: list[FoundFile]
    ignored: Counter[str]


def scan(folder: str) -> Found:
    """Everything below ``folder``. Raises DataError for a folder that cannot be listed: its images would be lost."""
    found = Found([], [], Counter())
    pending = [("", folder, frozenset({os.path.realpath(folder)}))]
    while pending:
        prefix, path, above = pending.pop()
        for entry in _entries(path):
            if entry.name.startswith("."):
                found.ignored["hidden"] += 1
            elif not _is_folder(entry):
                _sort_in(found, prefix + entry.name, entry)
            elif not entry.is_symlink():
                pending.append((f"{prefix}{entry.name}/", entry.path, above))
            elif (target := os.path.realpath(entry.path)) not in above and not _lies_in(path, target):
                pending.append((f"{prefix}{entry.name}/", entry.path, above | {target}))
    found.images.sort(key=attrgetter("name"))
    found.tars.sort(key=attrgetter("name"))
    return found


def suffix_of(name: str) -> str:
    """``.jpg`` of ``a/b.JPG``; empty when the last component has no dot."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > name.rfind("/") else ""


def file_at(path: str, name: str) -> FoundFile:
    """A file that was named, or found under another name than its own."""
    try:
        info = os.stat(path)  # noqa: PTH116  pathlib's objects take longer than the call
    except OSError:
        return FoundFile(name, path, UNKNOWN_BYTES, 0)
    return FoundFile(name, path, info.st_size, info.st_mtime_ns)


def _entries(folder: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(
            f"the folder {folder} cannot be listed: {error.strerror}; make it readable, move it away or run again"
        ) from error


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that goes round
        return False


def _lies_in(path: str, target: str) -> bool:
    """Whether the folder at ``path`` lies below ``target``, a link to which would go round for ever."""
    return os.path.realpath(path).startswith(target.rstrip("/") + "/")


def _sort_in(found: Found, name: str, entry: "os.DirEntry[str]") -> None:
    suffix = suffix_of(entry.name)
    if suffix not in IMAGE_SUFFIXES and suffix != TAR_SUFFIX:
        found.ignored[suffix or "no suffix"] += 1
        return
    wanted = found.tars if suffix == TAR_SUFFIX else found.images
    try:
        info = entry.stat()
    except OSError:  # a broken link: a row that says so
        wanted.append(FoundFile(name, entry.path, UNKNOWN_BYTES, 0))
        return
    if stat.S_ISREG(info.st_mode):
        wanted.append(FoundFile(name, entry.path, info.st_size, info.st_mtime_ns))
    else:
        found.ignored["not a file"] += 1
