"""Where the bytes of an open shard come from: a local file, read when asked for, or an S3 object, fetched ahead."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from mlcd_core.dataset.footer import first_line
from mlcd_core.dataset.shard import Shard, disk_failed, gone, not_parquet, replaced
from mlcd_core.objects import is_s3


class Source(Protocol):
    """An open Parquet file whose row groups are fetched before they are parsed."""

    parquet: pq.ParquetFile

    def fetched(self, row_groups: Sequence[int], columns: Sequence[str]) -> Iterator[int]:
        """The row groups in order, each when its columns may be read from ``parquet``, and until the next is asked."""
        ...


def open_source(shard: Shard) -> Source:
    """Open a shard. Raises DataError when it is gone or no whole Parquet file, StoreError when storage fails."""
    if shard.error:
        raise not_parquet(shard.uri, shard.error)
    if is_s3(shard.uri):
        from mlcd_core.dataset.object_source import ObjectSource

        return ObjectSource(shard)
    return LocalSource(shard)


class LocalSource:
    """A file on disk: the operating system reads ahead."""

    def __init__(self, shard: Shard) -> None:
        try:
            # by its size: copies of the data on other machines have other times
            if Path(shard.uri).stat().st_size != shard.bytes:
                raise replaced(shard.uri)
            self.parquet = pq.ParquetFile(shard.uri)
        except FileNotFoundError as error:
            raise gone(shard.uri) from error
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise disk_failed(shard.uri, error) from error
            raise not_parquet(shard.uri, first_line(error)) from error

    def fetched(self, row_groups: Sequence[int], columns: Sequence[str]) -> Iterator[int]:
        """The row groups; nothing is fetched."""
        del columns
        return iter(row_groups)
