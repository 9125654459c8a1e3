"""Images in folders: one row per file, its bytes as they are.

A file that cannot be read is a row without an image, whose status says so: every file that was listed has its row. A
file that is not what the plan saw raises instead, since a receipt must prove what its unit names.
"""

import os
from collections.abc import Iterator

from mlcd_core.errors import DataError
from mlcd_core.pack.cutting import cut
from mlcd_core.pack.keys import text_of, unique_keys
from mlcd_core.pack.options import PackOptions
from mlcd_core.pack.plan import FolderRow, FolderRows, PackPlan, PackUnit, listing_digest, unit_digest, unit_name
from mlcd_core.pack.scan import UNKNOWN_BYTES, FoundFile
from mlcd_core.pack.sources import Sources
from mlcd_core.pack.table import FAILED_TO_READ, Row

# beyond this no picture; the column of a row group holds 2 GiB
MOST_IMAGE_BYTES = 512 << 20


def plan_folder(sources: Sources, options: PackOptions) -> PackPlan:
    """The shards of a folder or an imagefolder, cut in name order."""
    columns = ("label", "class_name") if sources.kind == "imagefolder" else ()
    rows = _rows(sources)
    shards = cut(
        rows,
        lambda row: options.planned_bytes(row.file.bytes),
        most_items=options.rows_per_shard,
        most_bytes=options.max_shard_bytes,
    )
    return PackPlan(
        kind=sources.kind,
        listing=listing_digest(sources, options),
        options=options,
        columns=columns,
        classes=tuple(map(text_of, sources.classes)),
        ignored=sources.ignored,
        broken=(),
        units=tuple(_unit(index, shard, options, columns) for index, shard in enumerate(shards)),
    )


def folder_rows(reads: FolderRows) -> Iterator[Row]:
    """The rows of a shard. Raises DataError for a file that changed since the plan."""
    for row in reads.rows:
        image, error = _read(row.file)
        yield Row(
            key=row.key,
            image=image,
            status=FAILED_TO_READ if error else "success",
            error_message=error,
            label=row.label,
            class_name=row.class_name,
        )


def _rows(sources: Sources) -> list[FolderRow]:
    keys = unique_keys([file.name for file in sources.files])
    if not sources.classes:
        return [FolderRow(key, file, -1, "") for key, file in zip(keys, sources.files, strict=True)]
    labels = {name: label for label, name in enumerate(sources.classes)}
    texts = {name: text_of(name) for name in sources.classes}
    triples = zip(keys, sources.files, sources.file_classes, strict=True)
    return [FolderRow(key, file, labels[name], texts[name]) for key, file, name in triples]


def _unit(index: int, rows: list[FolderRow], options: PackOptions, columns: tuple[str, ...]) -> PackUnit:
    lines = [f"{key}\0{name}\0{f.name}\0{f.bytes}\0{f.mtime_ns}\0{label}" for key, f, label, name in rows]
    digest = unit_digest(options, columns, "files", lines)
    return PackUnit(unit_name(index), len(rows), digest, rows[0].key, FolderRows(tuple(rows)))


def _read(file: FoundFile) -> tuple[bytes | None, str | None]:
    """The bytes of a file, or why there are none."""
    if file.bytes > MOST_IMAGE_BYTES:
        return None, f"{file.bytes:,} bytes; an image may have {MOST_IMAGE_BYTES:,}"
    try:
        with open(file.path, "rb", buffering=0) as opened:
            info = os.fstat(opened.fileno())
            data = opened.read()
    except OSError as error:
        return None, error.strerror or type(error).__name__
    if (info.st_size, info.st_mtime_ns) != (file.bytes, file.mtime_ns) or len(data) != file.bytes:
        now = "could not be read then" if file.bytes == UNKNOWN_BYTES else "is not as it was then"
        raise DataError(
            f"{file.path} {now}, when the pack was planned; leave the sources at rest and run again with --replace"
        )
    return data, None
