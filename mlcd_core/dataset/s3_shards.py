"""Shards on S3: found by one listing, known by size and ETag; a footer is read only of objects not seen before."""

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from functools import partial

from mlcd_core.dataset.footer import read_footer
from mlcd_core.dataset.object_file import ObjectFile
from mlcd_core.dataset.object_source import object_digest
from mlcd_core.dataset.shard import Shard, shard_of
from mlcd_core.digest_memo import DigestMemo, Remembered
from mlcd_core.errors import DataError
from mlcd_core.objects import ObjectInfo, Objects, open_objects

FOOTER_THREADS = 16
WILDCARDS = frozenset("*?[")


def s3_shards(data: str, memo: DigestMemo) -> Generator[Shard]:
    """The shards of an object, a folder (``*.parquet`` in it) or a pattern, in name order; errors as ``find_shards``.

    As on a disk, a wildcard never reaches over a slash.
    """
    objects = open_objects()
    found = _matching_objects(data, objects)
    known = {info.uri: memo.get(info.uri, info.bytes, info.etag) for info in found}
    pool = ThreadPoolExecutor(FOOTER_THREADS, thread_name_prefix="footer")
    try:
        read = pool.map(partial(_read, objects), [info for info in found if known[info.uri] is None])
        for info in found:
            remembered = known[info.uri]
            if remembered is None:
                remembered = next(read)
                memo.put(info.uri, info.bytes, info.etag, remembered)
            yield shard_of(info.uri, info.bytes, remembered, etag=info.etag)
    finally:
        pool.shutdown(cancel_futures=True)


def _read(objects: Objects, info: ObjectInfo) -> Remembered:
    footer = read_footer(ObjectFile(objects, info))
    return Remembered(object_digest(info), footer.row_groups, footer.error)


def _matching_objects(data: str, objects: Objects) -> list[ObjectInfo]:
    """In name order, which is the order of the listing."""
    names = data.rstrip("/").split("/")
    first_wild = next((i for i, name in enumerate(names) if WILDCARDS & set(name)), len(names))
    is_pattern = first_wild < len(names)
    folder = "/".join(names[:first_wild])
    below = objects.list(folder)
    found = _matching(below, names if is_pattern else [*names, "*.parquet"], first_wild)
    if not found and not is_pattern:
        alone = objects.info(data)
        found = [alone] if alone else []
    if not found:
        expected = f"objects that match {data}" if is_pattern else f"an object {data} or *.parquet in that folder"
        beside = ", ".join(info.uri.removeprefix(f"{folder}/") for info in below[:5]) or "nothing"
        raise DataError(
            f"no shards found: expected {expected}; below {folder} lies {beside}; "
            "give Parquet shards with --data, in quotes when it is a pattern"
        )
    return found


def _matching(below: Sequence[ObjectInfo], wanted: Sequence[str], first_wild: int) -> list[ObjectInfo]:
    wild = wanted[first_wild:]
    split = ((info, info.uri.split("/")[first_wild:]) for info in below)
    return [info for info, names in split if len(names) == len(wild) and all(map(fnmatchcase, names, wild))]
