"""What a Parquet footer says of a shard's rows, or why it cannot be read; and where the bytes of its columns lie."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Footer:
    """Rows of each row group, or the reason why there are none."""

    row_groups: tuple[int, ...] = ()
    error: str = ""


def read_footer(file: Any) -> Footer:
    """The footer of a file. Raises OSError, or what ``file`` raises, only when its bytes cannot be got."""
    try:
        return Footer(group_rows(pq.read_metadata(file)))
    except (pa.ArrowException, OSError) as error:
        # an error number is of the disk, not of what is written there
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return Footer(error=first_line(error))


def group_rows(metadata: pq.FileMetaData) -> tuple[int, ...]:
    """Rows of each row group."""
    return tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))


def leaf_columns(metadata: pq.FileMetaData, names: Sequence[str]) -> list[int]:
    """Numbers of the stored columns that hold these columns or fields of structs."""
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    return [i for i, path in enumerate(paths) if any(path == name or path.startswith(f"{name}.") for name in names)]


def may_hold_values(metadata: pq.FileMetaData, name: str) -> bool:
    """Whether a value of this column may be other than null, by the statistics, which a file need not have."""
    leaves = leaf_columns(metadata, [name])
    chunks = (metadata.row_group(i).column(leaf) for i in range(metadata.num_row_groups) for leaf in leaves)
    return any(not _is_null(chunk) for chunk in chunks)


def chunk_ranges(metadata: pq.FileMetaData, row_group: int, leaves: Iterable[int]) -> list[tuple[int, int]]:
    """Where the pages of these stored columns lie in the file: [start, stop) for each."""
    group = metadata.row_group(row_group)
    ranges = []
    for leaf in leaves:
        chunk = group.column(leaf)
        first = chunk.data_page_offset
        if chunk.has_dictionary_page:
            first = min(first, chunk.dictionary_page_offset)
        ranges.append((first, first + chunk.total_compressed_size))
    return ranges


def joined_ranges(ranges: Iterable[tuple[int, int]], gap_bytes: int) -> list[tuple[int, int]]:
    """The ranges in order, joined where less than ``gap_bytes`` lie between: a request costs more than those."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and start <= joined[-1][1] + gap_bytes:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def first_line(error: Exception) -> str:
    """The text of a library's error without its trace."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _is_null(chunk: pq.ColumnChunkMetaData) -> bool:
    statistics = chunk.statistics
    return statistics is not None and statistics.has_null_count and statistics.num_values == 0
