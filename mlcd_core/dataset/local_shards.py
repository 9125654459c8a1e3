"""Shards on a local disk: found by path, known by the sha256 of their bytes."""

import glob
import hashlib
import os
from collections.abc import Generator
from pathlib import Path

from mlcd_core.dataset.footer import read_footer
from mlcd_core.dataset.shard import Shard, disk_failed, gone, shard_of
from mlcd_core.digest_memo import DigestMemo, Remembered
from mlcd_core.errors import DataError


def local_shards(data: str, memo: DigestMemo) -> Generator[Shard]:
    """The shards of a file, a folder (``*.parquet`` in it) or a pattern, in name order; errors as ``find_shards``."""
    found = [os.path.split(path) for path in _matching_files(data)]
    folders = {folder: os.path.realpath(folder) for folder in {folder for folder, _ in found}}
    return (_described(f"{folders[folder]}/{name}", memo) for folder, name in found)


def _matching_files(data: str) -> list[str]:
    """Paths in name order, as strings: sorting and resolving 40,000 of pathlib's takes seconds."""
    path = Path(data)
    if path.is_dir():
        found = sorted(entry.path for entry in os.scandir(path) if entry.name.endswith(".parquet"))
        expected = f"*.parquet files in the folder {data}"
    else:
        found, expected = sorted(glob.glob(data)), f"a file, folder or pattern at {data}"
    if not found:
        near = sorted(p.name for p in path.parent.glob("*"))[:5] if path.parent.is_dir() else []
        beside = f"; beside it: {', '.join(near)}" if near else f"; the folder {path.parent} does not exist"
        raise DataError(
            f"no shards found: expected {expected}{beside if not path.is_dir() else ''}; "
            "give Parquet shards with --data, in quotes when it is a pattern"
        )
    return found


def _described(uri: str, memo: DigestMemo) -> Shard:
    try:
        info = os.stat(uri)  # noqa: PTH116  40,000 of pathlib's objects take half a second
        stamp = str(info.st_mtime_ns)
        known = memo.get(uri, info.st_size, stamp)
        if known is None:
            known = _read(uri)
            memo.put(uri, info.st_size, stamp, known)
    except FileNotFoundError as error:
        raise gone(uri) from error
    except OSError as error:
        raise disk_failed(uri, error) from error
    return shard_of(uri, info.st_size, known)


def _read(uri: str) -> Remembered:
    with open(uri, "rb") as file:
        footer = read_footer(file)
        file.seek(0)
        return Remembered(hashlib.file_digest(file, "sha256").hexdigest(), footer.row_groups, footer.error)
