"""What the first readable shard of the data holds, and how fast its images are decoded here."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing

from mlcd_core.dataset import Shard, ShardReader
from mlcd_core.dataset.columns import find_columns
from mlcd_core.dataset.local_shards import local_shards
from mlcd_core.dataset.s3_shards import s3_shards
from mlcd_core.dataset.source import open_source
from mlcd_core.digest_memo import DigestMemo, default_memo
from mlcd_core.objects import is_s3
from mlcd_core.specs import EmbedSpec
from mlcd_core.tables import RowStatus
from tasks.doctor_findings import Finding

IMAGES, IMAGE_SIZE = 8, 224


def check_data(data: str, *, image_column: str = "auto") -> Iterator[Finding]:
    """Columns, rows, and eight images of the first shard that can be read; those before it are a warning.

    Raises DataError when there is no shard, none that can be read, or no such column.
    """
    *broken, shard = _shards_to_a_readable_one(data)
    if broken and not shard.error:
        yield _not_read(broken)
    schema = open_source(shard).parquet.schema_arrow
    named = ", ".join(f"{field.name} ({field.type})" for field in schema)
    text = f"{shard.uri}: {shard.rows:,} rows in {len(shard.row_groups):,} row groups, {shard.bytes / 1e6:,.1f} MB"
    yield Finding("data", "ok", f"{text}; columns {named}")
    columns = find_columns(schema, shard.uri, image=image_column, key="key", label="", caption="")
    keys = f"keys in {columns.key}" if columns.key else "no column key: keys are made from shard and row"
    yield Finding("data", "ok", f"images in the column {columns.image}, {keys}")
    yield _check_images(shard, image_column)


def _shards_to_a_readable_one(data: str) -> list[Shard]:
    """No more than are needed: to identify all of them, every byte would be read."""
    shards: list[Shard] = []
    with DigestMemo(default_memo()) as memo, closing((s3_shards if is_s3(data) else local_shards)(data, memo)) as found:
        for shard in found:
            shards.append(shard)
            if not shard.error:
                break
    return shards


def _not_read(broken: Sequence[Shard]) -> Finding:
    others = f" and {len(broken) - 1:,} more" if len(broken) > 1 else ""
    text = (
        f"{broken[0].uri}{others}: not a whole Parquet file ({broken[0].error}); a run goes on without its rows: write "
        "it again or take it out of the data"
    )
    return Finding("data", "warning", text)


def _check_images(shard: Shard, image_column: str) -> Finding:
    from mlcd_core.images.decode import decode_images

    group = next((number for number, rows in enumerate(shard.row_groups) if rows), None)
    if group is None:
        return Finding(
            "images", "warning", f"{shard.uri} has no rows; give other shards, or leave it: it costs nothing"
        )
    started = time.perf_counter()
    images = ShardReader(shard, image_column=image_column).read(group).images[:IMAGES]
    read = time.perf_counter()
    decoded = decode_images(images, image_size=IMAGE_SIZE, max_pixels=EmbedSpec().max_pixels)
    decode_s = time.perf_counter() - read
    counts = Counter(RowStatus(status).name.lower() for status in decoded.status_B)
    text = (
        f"{len(images)} decoded: {', '.join(f'{count} {name}' for name, count in counts.most_common())}; "
        f"{len(images) / decode_s:,.0f} images/s on one thread at {IMAGE_SIZE} pixels, "
        f"read in {1000 * (read - started):,.0f} ms"
    )
    if counts[RowStatus.OK.name.lower()] == 0:
        return Finding("images", "error", f"{text}; none is usable: look at what the image column holds")
    if counts[RowStatus.OK.name.lower()] < len(images):
        return Finding("images", "warning", f"{text}; bad images are rows without an embedding, up to a share")
    return Finding("images", "ok", text)
