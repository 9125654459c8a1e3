"""An open shard on S3: one request for its footer, then few and big ones for the row groups of a span."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from mlcd_core.dataset.footer import chunk_ranges, first_line, joined_ranges, leaf_columns
from mlcd_core.dataset.object_file import REQUEST_BYTES, ObjectFile
from mlcd_core.dataset.shard import Shard, not_parquet
from mlcd_core.identity import fingerprint
from mlcd_core.objects import ObjectInfo, open_objects

# other columns that lie between the wanted ones are fetched with them, up to so many bytes
GAP_BYTES = 1 << 20


def object_digest(info: ObjectInfo) -> str:
    """Identity of an object: its size and ETag, which a listing gives."""
    return fingerprint([info.bytes, info.etag])


class ObjectSource:
    """An S3 object whose bytes are fetched by range and parsed from memory."""

    def __init__(self, shard: Shard) -> None:
        self._file = ObjectFile(open_objects(), ObjectInfo(shard.uri, shard.bytes, shard.etag))
        try:
            self.parquet = pq.ParquetFile(self._file, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise not_parquet(shard.uri, first_line(error)) from error

    def fetched(self, row_groups: Sequence[int], columns: Sequence[str]) -> Iterator[int]:
        """The row groups; as many as one request may bring are fetched together."""
        try:
            for run, ranges in self._runs(row_groups, columns):
                self._file.hold(ranges)
                yield from run
        finally:
            # training keeps many shards open
            self._file.hold(())

    def _runs(
        self, row_groups: Sequence[int], columns: Sequence[str]
    ) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        """Consecutive row groups with at most REQUEST_BYTES of wanted bytes, or one with more; and where those are."""
        metadata = self.parquet.metadata
        leaves = leaf_columns(metadata, columns)
        run: list[int] = []
        ranges: list[tuple[int, int]] = []
        for group in row_groups:
            own = chunk_ranges(metadata, group, leaves)
            longer = joined_ranges([*ranges, *own], GAP_BYTES)
            if run and sum(stop - start for start, stop in longer) > REQUEST_BYTES:
                yield run, ranges
                run, longer = [], joined_ranges(own, GAP_BYTES)
            run, ranges = [*run, group], longer
        yield run, ranges
