"""Contact sheets of clusters, from the first images of the data and their labels."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlcd_core.contact_sheet import SheetRow, contact_sheet_png, pick_rows
from mlcd_core.dataset import ShardReader, spans_of
from mlcd_core.store import Manifest, read_part
from tasks.run import Run

CLUSTERS, COLUMNS = 12, 10
# what is read for it at most, but for the last row group
MOST_ROWS, MOST_BYTES = 5_000, 64_000_000


def cluster_sheet(run: Run, label: Manifest) -> bytes | None:
    """PNG of some clusters, a row each, their nearest images first; None where no row has a label.

    Looks at the first ``MOST_ROWS`` images only. Raises DataError and StoreError as its readers do.
    """
    images, labels_NL, scores_NL = _first_rows(run, label)
    picked = pick_rows(labels_NL, scores_NL, clusters=CLUSTERS, columns=COLUMNS, seed=0)
    if not picked:
        return None
    rows = [
        SheetRow(f"cluster {cluster:,}", [image for n in rows if (image := images[n]) is not None])
        for cluster, rows in picked.items()
    ]
    return contact_sheet_png(rows, max_pixels=run.config.embed.max_pixels)


def _first_rows(run: Run, label: Manifest) -> tuple[list[bytes | None], np.ndarray, np.ndarray]:
    """Images, labels [N, L] and scores [N, L] of the first rows."""
    embed = run.config.embed
    images: list[bytes | None] = []
    tables: list[pa.Table] = []
    for span, part in zip(spans_of(run.shards, embed.rows_per_unit), label.parts, strict=True):
        if span.shard.error:
            continue
        table = pq.read_table(pa.BufferReader(read_part(run.files, part)), columns=["labels", "scores"])
        reader = ShardReader(span.shard, image_column=embed.image_column, key_column=embed.key_column)
        before = len(images)
        for group in reader.read_span(span):
            images += group.images
            if _is_enough(images):
                break
        tables.append(table.slice(0, len(images) - before))
        if _is_enough(images):
            break
    together = pa.concat_tables(tables)
    return images, _matrix(together["labels"]), _matrix(together["scores"])


def _is_enough(images: list[bytes | None]) -> bool:
    return len(images) >= MOST_ROWS or sum(len(image) for image in images if image) >= MOST_BYTES


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    joined = column.combine_chunks()
    flat: np.ndarray = joined.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(joined), -1)
