"""The demo's data, made offline: scenes of one to four real handwritten digits.

scikit-learn ships 1,797 real 8x8 digits. A scene puts some of them on a dark 32x32 background, each with a colour, a
size and a place of its own, and adds noise; its label is the set of digits in it. That is multi-label data on which
pixels, colours and layout say nothing about the label. Train scenes use 1,400 of the digits, test scenes the other 397.
The split is the same for every seed, so that nothing fitted on train scenes of any seed has seen a test digit.
"""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Split = Literal["train", "test"]

SCENE_SIZE = 32
MOST_DIGITS = 4
SMALLEST_DIGIT, LARGEST_DIGIT = 10, 15  # pixels
MOST_OVERLAP = 0.1  # share of the smaller of two boxes
PLACE_TRIES = 30
NOISE = 24.0  # width of the uniform noise, in gray levels
TRAIN_DIGITS = 1_400
SPLIT_SEED = 20_240_731
ROW_GROUP_ROWS = 100

SCENE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("png", pa.binary(), nullable=False),
        pa.field("labels", pa.list_(pa.field("item", pa.int64(), nullable=False)), nullable=False),
    ]
)


@dataclass(frozen=True)
class DigitPool:
    """Digits of one split: ``images`` are 8x8 uint8 gray (255 is ink), ``values`` 0 to 9, ``ids`` of scikit-learn."""

    images: np.ndarray
    values: np.ndarray
    ids: np.ndarray


@dataclass(frozen=True)
class Box:
    """A square on the scene, in pixels."""

    left: int
    top: int
    size: int

    def overlap(self, other: "Box") -> float:
        """Shared area as a share of the smaller box."""
        wide = min(self.left + self.size, other.left + other.size) - max(self.left, other.left)
        high = min(self.top + self.size, other.top + other.size) - max(self.top, other.top)
        return max(wide, 0) * max(high, 0) / min(self.size, other.size) ** 2


def scene_table(split: Split, shard: int, rows: int, seed: int) -> pa.Table:
    """Make the first ``rows`` scenes of a shard: ``key``, ``png`` (encoded image), ``labels`` (sorted digits).

    Deterministic in (split, shard, seed), so shards can be made one by one, in any order and process.
    """
    rng = np.random.default_rng([seed, shard, int(split == "test")])
    pool = digit_pool(split)
    scenes = [_scene(rng, pool) for _ in range(rows)]
    columns = {
        "key": [f"{split}-{shard:05d}-{row:06d}" for row in range(rows)],
        "png": [_png(pixels) for pixels, _ in scenes],
        "labels": [labels for _, labels in scenes],
    }
    return pa.table(columns, schema=SCENE_SCHEMA)


def scene_parquet_bytes(split: Split, shard: int, rows: int, seed: int) -> bytes:
    """Make the same table as a Parquet file with row groups of 100 rows; equal bytes with equal library versions."""
    sink = pa.BufferOutputStream()
    pq.write_table(scene_table(split, shard, rows, seed), sink, row_group_size=ROW_GROUP_ROWS, compression="none")
    return bytes(sink.getvalue())


def digit_pool(split: Split) -> DigitPool:
    """Load the digits of one split; the two splits share no digit."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(digits.target))
    ids = order[:TRAIN_DIGITS] if split == "train" else order[TRAIN_DIGITS:]
    images = np.rint(digits.images[ids] * (255 / 16)).astype(np.uint8)
    return DigitPool(images=images, values=digits.target[ids], ids=ids)


def _scene(rng: np.random.Generator, pool: DigitPool) -> tuple[np.ndarray, list[int]]:
    background = rng.integers(0, 64, 3)
    pixels = np.broadcast_to(background, (SCENE_SIZE, SCENE_SIZE, 3)).astype(np.float64)
    labels: set[int] = set()
    for box in _boxes(rng):
        pick = rng.integers(len(pool.values))
        labels.add(int(pool.values[pick]))
        _paint(pixels, pool.images[pick], box, colour=_bright_colour(rng))
    pixels += (rng.random(pixels.shape) - 0.5) * NOISE
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), sorted(labels)


def _boxes(rng: np.random.Generator) -> list[Box]:
    boxes: list[Box] = []
    for _ in range(rng.integers(1, MOST_DIGITS + 1)):
        size = int(rng.integers(SMALLEST_DIGIT, LARGEST_DIGIT + 1))
        for left, top in rng.integers(0, SCENE_SIZE - size + 1, (PLACE_TRIES, 2)):
            box = Box(left=int(left), top=int(top), size=size)
            if all(box.overlap(other) < MOST_OVERLAP for other in boxes):
                boxes.append(box)
                break  # a digit that finds no place is left out
    return boxes


def _bright_colour(rng: np.random.Generator) -> np.ndarray:
    colour: np.ndarray = rng.uniform(0.25, 1.0, 3)
    colour *= rng.uniform(170, 255) / colour.max()
    return colour


def _paint(pixels: np.ndarray, digit: np.ndarray, box: Box, *, colour: np.ndarray) -> None:
    inked = Image.fromarray(digit).resize((box.size, box.size), Image.Resampling.BICUBIC)
    ink = np.asarray(inked)[:, :, None] / 255
    area = pixels[box.top : box.top + box.size, box.left : box.left + box.size]
    area += ink * (colour - area)


def _png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()
