"""A training set of a few dozen small images with labels, on disk, and the spec that trains on it in a second."""

import io
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from mlcd_core.dataset import Shard
from mlcd_core.specs import TrainSpec
from mlcd_core.store import Chain, LocalFiles, StageFolder
from mlcd_core.tables import label_schema
from mlcd_core.train import TrainData
from mlcd_core.train.batches import Batch

NUM_CLASSES = 24
NUM_LABELS = 4
SHARD_ROWS = (37, 20, 44)
ROW_GROUP_ROWS = 9
BAD_ROWS = {(0, 3), (0, 36), (2, 10), (2, 11)}
NUM_USABLE = sum(SHARD_ROWS) - len(BAD_ROWS)
BATCH_ROWS = 16
# a vision transformer of open_clip that trains in milliseconds; for open_clip.factory._MODEL_CONFIGS
TINY_VIT = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


def tiny_spec(**changes) -> TrainSpec:
    settings = {
        "image_size": 16,
        "num_positive": 3,
        "epochs": 2,
        "batch_size": 16,
        "lanes": 4,
        "scale": 16.0,
        "margin": 0.1,
        "negative_ratio": 0.5,
        "center_weight_decay": 0.01,
    }
    return TrainSpec(**{**settings, **changes})


def write_tiny_data(folder: Path) -> TrainData:
    """Three shards with row groups of 9 rows; the rows of BAD_ROWS have no image and labels of -1."""
    rng = np.random.default_rng(0)
    for shard, num_rows in enumerate(SHARD_ROWS):
        images = [_png(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(num_rows)]
        labels = np.stack([rng.permutation(NUM_CLASSES)[:NUM_LABELS] for _ in range(num_rows)]).astype(np.int32)
        for row in range(num_rows):
            if (shard, row) in BAD_ROWS:
                images[row], labels[row] = None, -1
        keys = [f"{shard}-{row}" for row in range(num_rows)]
        table = pa.table({"key": keys, "png": pa.array(images, pa.binary())})
        pq.write_table(table, folder / f"{shard}.parquet", row_group_size=ROW_GROUP_ROWS)
        pq.write_table(label_table(keys, labels), folder / f"{shard}.labels")
    return open_tiny_data(folder)


def open_tiny_data(folder: Path) -> TrainData:
    shards = tuple(_shard(folder / f"{i}.parquet", f"{i}" * 64, rows) for i, rows in enumerate(SHARD_ROWS))
    return TrainData(shards, partial(_read_labels, folder))


def _shard(path: Path, digest: str, rows: int) -> Shard:
    return Shard(str(path), digest, bytes=path.stat().st_size, rows=rows, row_groups=_row_groups(rows))


def label_table(keys: list[str], labels_NL: np.ndarray) -> pa.Table:
    num_rows, num_labels = labels_NL.shape
    scores = pa.array(np.zeros(labels_NL.size, np.float16))
    columns = [
        pa.array(np.arange(num_rows)),
        pa.array(keys),
        pa.FixedSizeListArray.from_arrays(pa.array(labels_NL.reshape(-1)), num_labels),
        pa.FixedSizeListArray.from_arrays(scores, num_labels),
    ]
    schema = label_schema(num_labels)
    columns = [column.cast(field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(columns, schema=schema)


def tiny_chain(root: Path, spec: TrainSpec) -> Chain:
    folder = StageFolder(LocalFiles(root), spec)
    folder.open()
    return Chain(folder, {"data": "d" * 64, "label": "e" * 64}, attempt=1, last_number=1000)


def global_batch(step: int) -> Batch:
    """A batch from nowhere: row 1 without a positive, row 2 with one."""
    generator = torch.Generator().manual_seed(step)
    pixels_BCHW = torch.randint(0, 256, (BATCH_ROWS, 3, 16, 16), dtype=torch.uint8, generator=generator)
    positives_BL = torch.rand(BATCH_ROWS, NUM_CLASSES, generator=generator).topk(3, dim=1).indices
    positives_BL[1] = -1
    positives_BL[2, 1:] = -1
    return Batch(pixels_BCHW, positives_BL, torch.arange(BATCH_ROWS), ("",) * BATCH_ROWS)


def _row_groups(num_rows: int) -> tuple[int, ...]:
    return tuple(min(ROW_GROUP_ROWS, num_rows - first) for first in range(0, num_rows, ROW_GROUP_ROWS))


def _read_labels(folder: Path, shard: int) -> pa.Table:
    return pq.read_table(folder / f"{shard}.labels")


def _png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()
