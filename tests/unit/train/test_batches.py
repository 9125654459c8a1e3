"""Batches: rows, labels and keys belong together for any world size; what does not fit is refused."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mlcd_core.dataset import ShardReader
from mlcd_core.errors import DataError, LabelDataError
from mlcd_core.train.batches import BatchReader
from mlcd_core.train.ranks import Ranks
from tests.unit.train.tiny import (
    BAD_ROWS,
    NUM_CLASSES,
    NUM_USABLE,
    ROW_GROUP_ROWS,
    SHARD_ROWS,
    label_table,
    open_tiny_data,
    tiny_spec,
    write_tiny_data,
)


class RankOf(Ranks):
    """A rank that reads alone: batches need no collective."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.fixture
def data(tmp_path):
    return write_tiny_data(tmp_path)


def reader(data, rank=0, size=1, **changes):
    return BatchReader(data, tiny_spec(**changes), RankOf(rank, size), num_classes=NUM_CLASSES)


def check_padding(batch):
    """A padded slot has an image that the rank has read, unless it has none, and nothing else."""
    is_padding_B = batch.rows_B < 0
    images = {pixels.numpy().tobytes() for pixels in batch.pixels_BCHW[~is_padding_B]}
    for key, labels, pixels in zip(batch.keys, batch.positives_BL, batch.pixels_BCHW, strict=True):
        if not key:
            assert labels.tolist() == [-1, -1, -1]
            assert pixels.numpy().tobytes() in images if images else int(pixels.sum()) == 0
    assert is_padding_B.tolist() == [not key for key in batch.keys]


def all_batches(data, size, **changes):
    """step -> {global row: (key, labels, pixels)} over all ranks."""
    steps = {}
    for rank in range(size):
        with reader(data, rank, size, **changes) as batches:
            num_steps = 2 * batches.lanes.steps_per_epoch
            for step, batch in enumerate(batches.batches(0, num_steps)):
                if changes.get("augment") == "none":
                    check_padding(batch)
                for row, key, labels, pixels in zip(
                    batch.rows_B.tolist(), batch.keys, batch.positives_BL, batch.pixels_BCHW, strict=True
                ):
                    if row >= 0:
                        steps.setdefault(step, {})[row] = (key, labels.tolist(), pixels.numpy().tobytes())
    return steps


def test_global_batches_are_the_same_at_any_world_size(data):
    alone = all_batches(data, 1)
    assert all_batches(data, 2) == alone
    assert all_batches(data, 4) == alone


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_padding_repeats_images_and_has_no_label(data, world_size):
    all_batches(data, world_size, augment="none")


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_usable_row_comes_once_per_epoch_with_its_own_labels(data, world_size):
    steps = all_batches(data, world_size)
    per_epoch = len(steps) // 2
    for epoch in (0, 1):
        rows = [row for step in range(epoch * per_epoch, (epoch + 1) * per_epoch) for row in steps[step]]
        assert len(rows) == len(set(rows)) == NUM_USABLE
    first_rows = np.cumsum([0, *SHARD_ROWS])
    for batch in steps.values():
        for row, (key, labels, _) in batch.items():
            shard = int(np.searchsorted(first_rows, row, side="right")) - 1
            local = row - int(first_rows[shard])
            assert key == f"{shard}-{local}"
            assert (shard, local) not in BAD_ROWS
            assert labels == data.read_labels(shard)["labels"][local].as_py()[:3]


def test_a_jump_into_the_middle_gives_the_same_batches(data):
    with reader(data) as whole, reader(data) as resumed:
        expected = list(whole.batches(0, 12))[5:]
        for found, batch in zip(resumed.batches(5, 12), expected, strict=True):
            assert torch.equal(found.rows_B, batch.rows_B)
            assert torch.equal(found.pixels_BCHW, batch.pixels_BCHW)


def test_a_jump_decodes_only_what_it_trains_on(data, monkeypatch):
    decoded = []
    import mlcd_core.train.batches as module

    real = module.decode_images
    monkeypatch.setattr(module, "decode_images", lambda images, **kw: decoded.append(len(images)) or real(images, **kw))
    with reader(data) as batches:
        list(batches.batches(9, 11))
    assert sum(decoded) <= 32


def test_an_epoch_reads_each_row_group_once_and_again_only_where_lanes_meet(data, monkeypatch):
    reads = []
    real = ShardReader.read
    monkeypatch.setattr(
        ShardReader, "read", lambda self, group: reads.append((self.shard.uri, group)) or real(self, group)
    )
    with reader(data) as batches:
        list(batches.batches(0, batches.lanes.steps_per_epoch))
    assert len(set(reads)) <= len(reads) <= len(set(reads)) + 4


def test_labels_of_other_data_are_refused_by_key(data, tmp_path):
    labels_NL = np.zeros((SHARD_ROWS[0], 4), np.int32) + np.arange(4, dtype=np.int32)
    keys = [f"other-{i}" for i in range(SHARD_ROWS[0])]
    pq.write_table(label_table(keys, labels_NL), tmp_path / "0.labels")
    with reader(data) as batches, pytest.raises(LabelDataError, match=r"'0-0'.*'other-0'"):
        list(batches.batches(0, batches.lanes.steps_per_epoch))


def test_labels_of_another_row_count_are_refused(data, tmp_path):
    pq.write_table(pq.read_table(tmp_path / "0.labels").slice(1), tmp_path / "0.labels")
    with pytest.raises(LabelDataError, match="36 rows"):
        reader(data)


def test_more_positives_than_labels_is_refused(data):
    with pytest.raises(LabelDataError, match=r"train.num_positive <= 4"):
        reader(data, num_positive=5)


def test_labels_beyond_the_classes_are_refused(data):
    with pytest.raises(LabelDataError, match="expected 0 to 4"):
        BatchReader(data, tiny_spec(), RankOf(0, 1), num_classes=5)


def test_a_labelled_image_that_does_not_decode_is_an_error_with_its_key(data, tmp_path):
    table = pq.read_table(tmp_path / "1.parquet")
    broken = pa.array([b"not an image", *table["png"].to_pylist()[1:]], pa.binary())
    pq.write_table(table.set_column(1, "png", broken), tmp_path / "1.parquet", row_group_size=ROW_GROUP_ROWS)
    changed = open_tiny_data(tmp_path)
    with reader(changed) as batches, pytest.raises(DataError, match="'1-0' has labels but does not decode"):
        list(batches.batches(0, batches.lanes.steps_per_epoch))


def test_data_without_usable_rows_is_an_error(data):
    def unusable(shard):
        rows = SHARD_ROWS[shard]
        return label_table([f"{shard}-{i}" for i in range(rows)], np.full((rows, 4), -1, np.int32))

    with pytest.raises(DataError, match="no row of 3 shards has a label"):
        reader(replace(data, read_labels=unusable))


def test_fewer_usable_rows_than_lanes_is_an_error(data):
    fits, too_many = NUM_USABLE, NUM_USABLE + 1
    with reader(data, lanes=fits, batch_size=fits) as batches:
        assert batches.lanes.steps_per_epoch == 1
    with pytest.raises(DataError, match=r"97 usable rows for 98 lanes; .* set train.lanes <= 97"):
        reader(data, lanes=too_many, batch_size=too_many)


def test_classes_without_rows_are_counted(data):
    with reader(data) as batches:
        assert batches.rows_per_class.sum() == 3 * NUM_USABLE
