"""The rows of a shard, one row group at a time, from a disk or from S3."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mlcd_core.dataset.columns import check_bytes_inside, find_columns
from mlcd_core.dataset.footer import first_line, group_rows
from mlcd_core.dataset.shard import Shard, replaced
from mlcd_core.dataset.source import open_source
from mlcd_core.dataset.spans import Span
from mlcd_core.errors import DataError, StoreError
from mlcd_core.identity import short


@dataclass(frozen=True)
class ImageRows:
    """Consecutive rows of a shard; ``upstream_failed`` marks rows whose ``status`` column says no image was got.

    first_row counts inside the shard. labels and captions are None unless they were asked for.
    """

    first_row: int
    keys: list[str]
    images: list[bytes | None]
    upstream_failed: list[bool]
    labels: list[Any] | None
    captions: list[str | None] | None = None


class ShardReader:
    """Reads the images of one shard by row group, or a span of them.

    image_column: a binary column, a struct with ``bytes``, or ``auto``. Without the key column, a row's key is made
    from the shard's digest and the row. label_column: int or list of ints per row. caption_column: string per row.
    Empty reads none. Raises DataError when the columns do not exist, with the columns that do, and when the file is
    unreadable, gone, or no longer the one that was found; StoreError when storage does not answer.
    """

    def __init__(
        self,
        shard: Shard,
        *,
        image_column: str = "auto",
        key_column: str = "key",
        label_column: str = "",
        caption_column: str = "",
    ) -> None:
        self.shard = shard
        self._source = open_source(shard)
        parquet = self._source.parquet
        self.row_group_rows = group_rows(parquet.metadata)
        if shard.row_groups and shard.row_groups != self.row_group_rows:
            raise replaced(shard.uri)
        self._columns = find_columns(
            parquet.schema_arrow,
            shard.uri,
            image=image_column,
            key=key_column,
            label=label_column,
            caption=caption_column,
        )
        check_bytes_inside(parquet.metadata, self._columns, shard.uri)

    def read(self, row_group: int) -> ImageRows:
        """The rows of one row group, in order. Raises DataError when its pages cannot be read."""
        [rows] = self.read_groups([row_group])
        return rows

    def read_span(self, span: Span) -> Iterator[ImageRows]:
        """The rows of a span, a row group at a time; errors as ``read``."""
        return self.read_groups(range(span.first_group, span.first_group + span.groups))

    def read_groups(self, row_groups: Sequence[int]) -> Iterator[ImageRows]:
        """The rows of these row groups, one after the other, from S3 in as few requests as memory allows."""
        return map(self._rows, self._source.fetched(row_groups, self._columns.read))

    def read_labels(self, row_groups: Sequence[int]) -> Iterator[list[Any]]:
        """The labels alone of these row groups; errors as ``read``."""
        assert self._columns.label, "no label column was asked for"
        return map(self._labels, self._source.fetched(row_groups, [self._columns.label]))

    def __iter__(self) -> Iterator[ImageRows]:
        return self.read_groups(range(len(self.row_group_rows)))

    def _labels(self, row_group: int) -> list[Any]:
        assert self._columns.label
        with self._errors_of(row_group):
            labels: list[Any] = self._table(row_group, [self._columns.label])[self._columns.label].to_pylist()
            return labels

    def _rows(self, row_group: int) -> ImageRows:
        columns, first_row = self._columns, sum(self.row_group_rows[:row_group])
        with self._errors_of(row_group):
            table = self._table(row_group, columns.read)
            return ImageRows(
                first_row=first_row,
                keys=self._keys(table, first_row),
                images=self._images(table),
                upstream_failed=self._upstream_failed(table),
                labels=table[columns.label].to_pylist() if columns.label else None,
                captions=table[columns.caption].to_pylist() if columns.caption else None,
            )

    def _table(self, row_group: int, columns: Sequence[str]) -> pa.Table:
        return self._source.parquet.read_row_group(row_group, columns=list(columns))

    def _images(self, table: pa.Table) -> list[bytes | None]:
        column = table[self._columns.image]
        inside = pc.struct_field(column, "bytes") if self._columns.image_in_struct else column
        images: list[bytes | None] = inside.to_pylist()
        return images

    def _keys(self, table: pa.Table, first_row: int) -> list[str]:
        made = [f"{short(self.shard.digest)}-{row:06d}" for row in range(first_row, first_row + table.num_rows)]
        if self._columns.key is None:
            return made
        found = table[self._columns.key].to_pylist()
        return [made[i] if key is None else str(key) for i, key in enumerate(found)]

    def _upstream_failed(self, table: pa.Table) -> list[bool]:
        if self._columns.status is None:
            return [False] * table.num_rows
        return [state != "success" for state in table[self._columns.status].to_pylist()]

    @contextmanager
    def _errors_of(self, row_group: int) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            where = f"row group {row_group} of {self.shard.uri} cannot be read: {first_line(error)}"
            # an error number is of the disk, which says nothing of the shard
            if isinstance(error, OSError) and error.errno is not None:
                raise StoreError(f"{where}; expected storage that answers: look at the disk, then run again") from error
            raise DataError(f"{where}; write the shard again or take it out of the data") from error
