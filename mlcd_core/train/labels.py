"""The positives of training rows: labels joined to their shards by row, and checked against the keys.

A row is usable when its first label is not -1. The first ``num_positive`` labels, best first, are its positives.

N rows of a shard, L = num_positive.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mlcd_core.dataset import Shard
from mlcd_core.errors import LabelDataError

READ_FIX = "run the label stage again"


@dataclass(frozen=True)
class TrainData:
    """What training reads: image shards in order, and the label table (row, key, labels, ...) of all rows of shard i.

    A shard that could not be read has no rows, and its table none.
    """

    shards: tuple[Shard, ...]
    read_labels: Callable[[int], pa.Table]
    key_column: str = "key"


@dataclass(frozen=True)
class ShardLabels:
    """The labels of one shard: ``positives_NL`` int64, -1 for unusable rows."""

    positives_NL: np.ndarray
    keys: pa.ChunkedArray

    @property
    def usable_N(self) -> np.ndarray:
        """Which rows may be trained on."""
        return np.asarray(self.positives_NL[:, 0] >= 0)

    def check_keys(self, first_row: int, keys: list[str], uri: str) -> None:
        """Raise LabelDataError unless the rows from ``first_row`` on have these keys."""
        found = self.keys.slice(first_row, len(keys)).to_pylist()
        if found != keys:
            at = next((i for i, key in enumerate(keys) if i >= len(found) or found[i] != key), len(keys))
            raise LabelDataError(
                f"row {first_row + at} of {uri} has the key {keys[at]!r}, its label file says "
                f"{found[at] if at < len(found) else 'nothing'!r}; the labels are of other data: {READ_FIX}"
            )


def shard_labels(data: TrainData, shard_index: int, *, num_positive: int, num_classes: int) -> ShardLabels:
    """Read and check the label table of one shard.

    Raises LabelDataError when its rows are not the shard's, it has fewer than ``num_positive`` labels per row, or a
    label outside [0, num_classes).
    """
    shard, table = data.shards[shard_index], data.read_labels(shard_index)
    row_N = table["row"].to_numpy()
    if len(row_N) != shard.rows or not np.array_equal(row_N, np.arange(shard.rows)):
        raise LabelDataError(
            f"the labels of {shard.uri} are of {len(row_N):,} rows, expected the rows 0 to {shard.rows - 1:,} "
            f"in order; {READ_FIX}"
        )
    label_type = table.schema.field("labels").type
    num_labels = label_type.list_size
    if num_labels < num_positive:
        raise LabelDataError(
            f"the label files of {shard.uri} have {num_labels} labels per row, train.num_positive is {num_positive}; "
            f"set train.num_positive <= {num_labels}, or label.num_labels >= {num_positive}"
        )
    flat = table["labels"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    positives_NL = flat.reshape(-1, num_labels)[:, :num_positive].astype(np.int64)
    if len(positives_NL) and (positives_NL.max() >= num_classes or positives_NL.min() < -1):
        raise LabelDataError(
            f"the label files of {shard.uri} hold labels from {positives_NL.min()} to {positives_NL.max()}, "
            f"expected 0 to {num_classes - 1} (-1 for unusable rows); it is of another clustering: {READ_FIX}"
        )
    return ShardLabels(positives_NL, table["key"])
