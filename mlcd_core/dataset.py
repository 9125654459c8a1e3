"""Input shards: Parquet files with image bytes, found by name, identified by content, read one row group at a time.

A shard is known by the sha256 of its bytes, so moved or renamed data is the same data. Its digest is memoised by path,
size and modification time (``digest_memo``). Shards are ordered by name.
"""

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlcd_core.digest_memo import DigestMemo, Remembered
from mlcd_core.errors import DataError, LabelDataError
from mlcd_core.identity import fingerprint, short

IMAGE_COLUMNS = ("jpg", "png", "webp", "image")


@dataclass(frozen=True)
class Shard:
    """One Parquet file: where it is now, what it is (sha256), and how much it holds."""

    uri: str
    digest: str
    bytes: int
    rows: int


@dataclass(frozen=True)
class ImageRows:
    """Consecutive rows of a shard; ``upstream_failed`` marks rows whose ``status`` column says no image was got."""

    first_row: int
    keys: list[str]
    images: list[bytes | None]
    upstream_failed: list[bool]
    labels: list[Any] | None


def find_shards(data: str, *, memo: Path) -> tuple[Shard, ...]:
    """The shards that ``data`` names (a file, a folder or a glob pattern), in name order, with their digests.

    memo: the database that remembers digests. Raises DataError when nothing matches or a file is not whole Parquet.
    """
    found = [os.path.split(path) for path in _matching_files(data)]
    folders = {folder: os.path.realpath(folder) for folder in {folder for folder, _ in found}}
    with DigestMemo(memo) as digests:
        return tuple(_describe(f"{folders[folder]}/{name}", digests) for folder, name in found)


def data_digest(shards: Sequence[Shard]) -> str:
    """Identity of an ordered list of shards."""
    return fingerprint([shard.digest for shard in shards])


class ShardReader:
    """Reads the images of one shard by row group.

    image_column: a binary column, a struct with ``bytes``, or ``auto``. Without the key column, a row's key is made
    from the shard's digest and the row. label_column: int or list of ints per row; empty reads none.
    Raises DataError when the columns do not exist, with the columns that do.
    """

    def __init__(
        self, shard: Shard, *, image_column: str = "auto", key_column: str = "key", label_column: str = ""
    ) -> None:
        self.shard = shard
        self._file = _open_parquet(shard.uri)
        schema = self._file.schema_arrow
        self._image_column = _image_column(schema, image_column, shard.uri)
        self._key_column = key_column if key_column in schema.names else None
        self._label_column = _label_column(schema, label_column, shard.uri)
        status = schema.field("status").type if "status" in schema.names else None
        self._status_column = "status" if status is not None and pa.types.is_string(status) else None
        metadata = self._file.metadata
        self.row_group_rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))

    def read(self, row_group: int) -> ImageRows:
        """The rows of one row group, in order. Raises DataError when its pages cannot be read."""
        wanted = [self._image_column, self._key_column, self._label_column, self._status_column]
        columns = [name for name in wanted if name is not None]
        try:
            table = self._file.read_row_group(row_group, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"row group {row_group} of {self.shard.uri} cannot be read: {_first_line(error)}; "
                "write the shard again or take it out of the data"
            ) from error
        first_row = sum(self.row_group_rows[:row_group])
        return ImageRows(
            first_row=first_row,
            keys=self._keys(table, first_row),
            images=[v["bytes"] if isinstance(v, dict) else v for v in table[self._image_column].to_pylist()],
            upstream_failed=self._upstream_failed(table),
            labels=table[self._label_column].to_pylist() if self._label_column else None,
        )

    def __iter__(self) -> Iterator[ImageRows]:
        return (self.read(i) for i in range(len(self.row_group_rows)))

    def _keys(self, table: pa.Table, first_row: int) -> list[str]:
        made = [f"{short(self.shard.digest)}-{row:06d}" for row in range(first_row, first_row + table.num_rows)]
        if self._key_column is None:
            return made
        found = table[self._key_column].to_pylist()
        return [made[i] if key is None else str(key) for i, key in enumerate(found)]

    def _upstream_failed(self, table: pa.Table) -> list[bool]:
        if self._status_column is None:
            return [False] * table.num_rows
        return [state != "success" for state in table[self._status_column].to_pylist()]


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


def _describe(uri: str, memo: DigestMemo) -> Shard:
    info = os.stat(uri)  # noqa: PTH116  40,000 of pathlib's objects take half a second
    known = memo.get(uri, info)
    if known is None:
        rows = _open_parquet(uri).metadata.num_rows
        with open(uri, "rb") as file:
            known = Remembered(hashlib.file_digest(file, "sha256").hexdigest(), rows)
        memo.put(uri, info, known)
    return Shard(uri=uri, digest=known.sha256, bytes=info.st_size, rows=known.num_rows)


def _open_parquet(uri: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(uri)
    except FileNotFoundError as error:
        raise DataError(f"the shard {uri} is gone; bring it back or run again without it") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{uri} is not a whole Parquet file: {_first_line(error)}; write it again or take it out of the data"
        ) from error


def _image_column(schema: pa.Schema, wanted: str, uri: str) -> str:
    holders = [field.name for field in schema if _holds_images(field.type)]
    if wanted == "auto":
        found = next((name for name in IMAGE_COLUMNS if name in holders), None)
        if found is not None:
            return found
    elif wanted in holders:
        return wanted
    named = "jpg, png, webp or image" if wanted == "auto" else repr(wanted)
    fix = f"try --set embed.image_column={holders[0]}" if holders else "no column holds bytes: pack the images first"
    raise DataError(f"no image column {named} in {uri}; its columns are {', '.join(_described(schema))}; {fix}")


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _label_column(schema: pa.Schema, wanted: str, uri: str) -> str | None:
    if not wanted:
        return None
    if wanted not in schema.names:
        raise LabelDataError(
            f"no label column {wanted!r} in {uri}; its columns are {', '.join(_described(schema))}; "
            "name one of them with --label-column"
        )
    kind = schema.field(wanted).type
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if not pa.types.is_integer(inner):
        raise LabelDataError(
            f"the label column {wanted!r} of {uri} holds {kind}; expected an int, or a list of ints, per row"
        )
    return wanted


def _described(schema: pa.Schema) -> list[str]:
    return [f"{field.name} ({field.type})" for field in schema]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
