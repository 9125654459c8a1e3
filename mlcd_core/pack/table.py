"""Rows to the bytes of a Parquet shard, in row groups that are small enough to stream.

Columns: ``key``, ``image`` (the file as it is), ``status`` and ``error_message`` as in img2dataset's shards, and those
that the sources have: ``label``, ``class_name``, ``caption``, ``json``. The bytes of images are not compressed again
and have no statistics, which would hold two whole images per row group.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mlcd_core.pack.cutting import cut

ROW_GROUP_ROWS = 500
ROW_GROUP_BYTES = 32 << 20

Status = Literal["success", "failed_to_read", "no_image"]
FAILED_TO_READ: Status = "failed_to_read"
NO_IMAGE: Status = "no_image"

_OPTIONAL = {"label": pa.int64(), "class_name": pa.string(), "caption": pa.string(), "json": pa.string()}
_REPEATED = ("status", "class_name")


class Row(NamedTuple):
    """One image and what is known of it. Without an image the status is not ``success``."""

    key: str
    image: bytes | None
    status: Status
    error_message: str | None = None
    label: int | None = None
    class_name: str | None = None
    caption: str | None = None
    json: str | None = None


def pack_schema(columns: Sequence[str]) -> pa.Schema:
    """The schema of shards with these columns beside the four that all have."""
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("image", pa.binary()),
            pa.field("status", pa.string(), nullable=False),
            pa.field("error_message", pa.string()),
            *(pa.field(name, _OPTIONAL[name]) for name in columns),
        ]
    )


def parquet_bytes(rows: Iterable[Row], columns: Sequence[str]) -> bytes:
    """The shard of these rows; equal rows give equal bytes with equal library versions."""
    schema = pack_schema(columns)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression={name: "none" if name == "image" else "zstd" for name in schema.names},
        use_dictionary=[name for name in _REPEATED if name in schema.names],
        write_statistics=[name for name in schema.names if name != "image"],
    ) as writer:
        for group in cut(rows, _image_bytes, most_items=ROW_GROUP_ROWS, most_bytes=ROW_GROUP_BYTES):
            arrays = [pa.array([getattr(row, field.name) for row in group], field.type) for field in schema]
            writer.write_table(pa.table(arrays, schema=schema), row_group_size=len(group))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _image_bytes(row: Row) -> int:
    return len(row.image or b"")
