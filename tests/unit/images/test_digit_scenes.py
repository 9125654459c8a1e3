"""The demo's scenes: the same bytes every time, test digits unseen in training, labels that are true."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlcd_core.images import digit_scenes
from mlcd_core.images.digit_scenes import Box, digit_pool, scene_parquet_bytes, scene_table


def test_a_shard_is_the_same_every_time():
    assert scene_parquet_bytes("train", 2, 30, seed=0) == scene_parquet_bytes("train", 2, 30, seed=0)


def test_a_shorter_shard_is_the_start_of_a_longer_one():
    assert scene_table("train", 0, 10, seed=0).equals(scene_table("train", 0, 25, seed=0).slice(0, 10))


@pytest.mark.parametrize("other", [("test", 0, 0), ("train", 1, 0), ("train", 0, 1)])
def test_split_shard_and_seed_each_give_other_scenes(other):
    split, shard, seed = other
    here = scene_table("train", 0, 10, seed=0)["png"].to_pylist()
    assert not set(here) & set(scene_table(split, shard, 10, seed=seed)["png"].to_pylist())


def test_train_and_test_scenes_share_no_digit():
    train, test = digit_pool("train"), digit_pool("test")
    assert len(train.ids) == 1_400
    assert len(test.ids) == 397
    assert not set(train.ids) & set(test.ids)


def test_every_digit_of_both_splits_occurs():
    for split in ("train", "test"):
        assert set(digit_pool(split).values) == set(range(10))


def test_parquet_has_small_row_groups_and_typed_columns():
    file = pq.ParquetFile(io.BytesIO(scene_parquet_bytes("test", 0, 250, seed=0)))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [100, 100, 50]
    assert file.read().equals(scene_table("test", 0, 250, seed=0))


def test_keys_are_distinct_over_shards_and_splits():
    keys = [key for split in ("train", "test") for shard in (0, 1)
            for key in scene_table(split, shard, 5, seed=0)["key"].to_pylist()]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_images_are_32_px_rgb_with_labels_sorted_and_distinct():
    table = scene_table("train", 0, 60, seed=0)
    for data, labels in zip(table["png"].to_pylist(), table["labels"].to_pylist(), strict=True):
        image = Image.open(io.BytesIO(data))
        assert (image.size, image.mode) == ((32, 32), "RGB")
        assert labels == sorted(set(labels))
        assert 1 <= len(labels) <= 4
    counts = {len(labels) for labels in table["labels"].to_pylist()}
    assert counts == {1, 2, 3, 4}


def test_labels_name_the_digits_that_were_painted(monkeypatch):
    painted = []
    paint = digit_scenes._paint

    def watch(pixels, digit, box, *, colour):
        painted.append((digit.tobytes(), box))
        paint(pixels, digit, box, colour=colour)

    monkeypatch.setattr(digit_scenes, "_paint", watch)
    pool = digit_pool("test")
    value_of = {image.tobytes(): int(value) for image, value in zip(pool.images, pool.values, strict=True)}
    for seed in range(40):
        painted.clear()
        labels = scene_table("test", 0, 1, seed=seed)["labels"][0].as_py()
        assert labels == sorted({value_of[digit] for digit, _ in painted})
        boxes = [box for _, box in painted]
        assert all(a.overlap(b) < 0.1 for i, a in enumerate(boxes) for b in boxes[:i])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(10, 15)), min_size=2, max_size=2))
def test_overlap_counts_shared_pixels(corners):
    first, second = (Box(left=left, top=top, size=size) for left, top, size in corners)
    area = np.zeros((2, 40, 40), bool)
    for layer, box in zip(area, (first, second), strict=True):
        layer[box.top : box.top + box.size, box.left : box.left + box.size] = True
    assert first.overlap(second) == area.all(axis=0).sum() / min(first.size, second.size) ** 2


def test_digits_are_brighter_than_the_background():
    table = scene_table("train", 0, 50, seed=0)
    images = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in table["png"].to_pylist()])
    brightest = images.max(axis=3).reshape(50, -1)
    assert np.median(brightest) < 80
    assert (np.percentile(brightest, 99, axis=1) > 120).mean() > 0.9
