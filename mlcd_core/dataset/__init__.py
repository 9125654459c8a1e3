"""Input shards: Parquet files with image bytes, on a disk or on S3, found, identified, cut into units, and read."""

from mlcd_core.dataset.finding import find_shards
from mlcd_core.dataset.reader import ImageRows, ShardReader
from mlcd_core.dataset.shard import Shard, data_digest
from mlcd_core.dataset.shard_parts import parts_of_shards
from mlcd_core.dataset.spans import Span, spans_of

__all__ = [
    "ImageRows",
    "Shard",
    "ShardReader",
    "Span",
    "data_digest",
    "find_shards",
    "parts_of_shards",
    "spans_of",
]
