"""Where test shards lie: a local folder, or a prefix of an S3 server of the tests."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from mlcd_core.objects import open_objects


def parquet_bytes(columns: dict[str, Any] | pa.Table, row_group_size: int = 2, **options: Any) -> bytes:
    """A Parquet file of these columns."""
    sink = io.BytesIO()
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, sink, row_group_size=row_group_size, **options)
    return sink.getvalue()


class Place(Protocol):
    """A folder for shards; ``address`` is what a user would give as data."""

    address: str

    def put(self, name: str, data: bytes) -> str:
        """Write a file below the folder and return its address."""
        ...


@dataclass(frozen=True)
class LocalPlace:
    """A local folder."""

    address: str

    def put(self, name: str, data: bytes) -> str:
        """Write a file."""
        path = Path(self.address) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)


@dataclass(frozen=True)
class S3Place:
    """A prefix of a bucket."""

    address: str

    def put(self, name: str, data: bytes) -> str:
        """Write an object."""
        uri = f"{self.address}/{name}"
        open_objects().put(uri, data)
        return uri
