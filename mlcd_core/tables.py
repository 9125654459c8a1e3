"""Arrow schemas of every table the stages write, and the status codes of rows.

D is the embedding dimension, L the labels per row. Every input row gives exactly one row, in input order.
"""

from enum import IntEnum

import pyarrow as pa

# rows of an embedding part that k-means sums in one piece; the last block of a part is shorter
BLOCK_ROWS = 65_536


class RowStatus(IntEnum):
    """Why a row is usable or not; stored as int8. Rows other than OK hold a zero vector and labels of -1."""

    OK = 0
    NULL_BYTES = 1
    UPSTREAM_FAILED = 2
    NOT_AN_IMAGE = 3
    TRUNCATED = 4
    TOO_MANY_PIXELS = 5
    DECODE_ERROR = 6
    NOT_FINITE = 7
    WORKER_DIED = 8
    UNREADABLE = 9
    NO_VECTOR = 10


def embedding_schema(dim: int) -> pa.Schema:
    """Embedding part: ``row`` counts inside the input shard; embeddings are L2-normalised float16."""
    vector = pa.list_(pa.field("item", pa.float16(), nullable=False), dim)
    return pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("key", pa.string(), nullable=False),
            pa.field("status", pa.int8(), nullable=False),
            pa.field("embedding", vector, nullable=False),
        ]
    )


def centroid_schema(dim: int) -> pa.Schema:
    """Centroid table: unit float32 rows on the 2^-24 grid, and the rows assigned in the last iteration."""
    vector = pa.list_(pa.field("item", pa.float32(), nullable=False), dim)
    return pa.schema(
        [
            pa.field("centroid", pa.int32(), nullable=False),
            pa.field("count", pa.int64(), nullable=False),
            pa.field("vector", vector, nullable=False),
        ]
    )


def sums_schema(dim: int) -> pa.Schema:
    """Sums of an iteration under way: per centroid the rows assigned so far, and their exact float64 sum."""
    vector = pa.list_(pa.field("item", pa.float64(), nullable=False), dim)
    return pa.schema(
        [
            pa.field("centroid", pa.int32(), nullable=False),
            pa.field("count", pa.int64(), nullable=False),
            pa.field("vector", vector, nullable=False),
        ]
    )


def label_schema(num_labels: int) -> pa.Schema:
    """Label file: centroid ids best first, -1 for unusable rows, with their cosines (0 for unusable rows)."""
    return pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("key", pa.string(), nullable=False),
            pa.field("labels", pa.list_(pa.field("item", pa.int32(), nullable=False), num_labels), nullable=False),
            pa.field("scores", pa.list_(pa.field("item", pa.float16(), nullable=False), num_labels), nullable=False),
        ]
    )
