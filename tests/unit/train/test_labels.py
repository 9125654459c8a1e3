"""Labels joined to their shards: shards of several parts, and one that could not be read, train as whole ones do."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mlcd_core.dataset import Shard, spans_of
from mlcd_core.errors import LabelDataError
from mlcd_core.specs import LabelSpec
from mlcd_core.store import LocalFiles, Part, StageFolder
from mlcd_core.train import TrainData
from mlcd_core.train.batches import Batch, BatchReader
from mlcd_core.train.labels import shard_labels
from mlcd_core.train.ranks import Ranks
from tasks.train_worker import LabelReader
from tests.unit.train.tiny import NUM_CLASSES, NUM_LABELS, tiny_spec, write_tiny_data

BAD_SHARD = Shard("gone.parquet", "b" * 64, bytes=10, rows=0, error="it has no footer")


@pytest.fixture
def whole(tmp_path: Path) -> TrainData:
    return write_tiny_data(tmp_path)


@pytest.fixture
def in_parts(whole: TrainData, tmp_path: Path) -> tuple[tuple[Shard, ...], tuple[Part, ...]]:
    """The shards of ``whole`` with one that could not be read among them, and their labels as parts of 18 rows."""
    shards = (whole.shards[0], BAD_SHARD, *whole.shards[1:])
    tables = [whole.read_labels(0), whole.read_labels(0).slice(0, 0), whole.read_labels(1), whole.read_labels(2)]
    folder = StageFolder(LocalFiles(tmp_path), LabelSpec(num_labels=NUM_LABELS))
    parts = []
    for span in spans_of(shards, 18):
        table = tables[shards.index(span.shard)].slice(span.first_row, span.rows)
        parts.append(folder.put("x", ".parquet", parquet_bytes(table), rows=table.num_rows, usable=0))
    assert [part.rows for part in parts] == [18, 18, 1, 0, 18, 2, 18, 18, 8]
    return shards, tuple(parts)


def parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def batches_of(data: TrainData) -> list[Batch]:
    with BatchReader(data, tiny_spec(), Ranks(None), num_classes=NUM_CLASSES) as reader:
        return list(reader.batches(0, 2 * reader.lanes.steps_per_epoch))


def test_shards_of_several_parts_and_an_unreadable_one_give_the_batches_of_whole_shards(
    whole: TrainData, in_parts: tuple[tuple[Shard, ...], tuple[Part, ...]], tmp_path: Path
) -> None:
    shards, parts = in_parts
    split = TrainData(shards, LabelReader(str(tmp_path), parts, shards))
    for expected, found in zip(batches_of(whole), batches_of(split), strict=True):
        assert found.keys == expected.keys
        assert torch.equal(found.rows_B, expected.rows_B)
        assert torch.equal(found.positives_BL, expected.positives_BL)
        assert torch.equal(found.pixels_BCHW, expected.pixels_BCHW)


def test_the_labels_of_a_shard_are_those_of_all_its_parts(
    whole: TrainData, in_parts: tuple[tuple[Shard, ...], tuple[Part, ...]], tmp_path: Path
) -> None:
    shards, parts = in_parts
    read = LabelReader(str(tmp_path), parts, shards)
    assert [read(shard) for shard in (0, 2, 3)] == [whole.read_labels(shard) for shard in range(3)]
    data = TrainData(shards, read)
    assert shard_labels(data, 1, num_positive=3, num_classes=NUM_CLASSES).positives_NL.shape == (0, 3)


def test_parts_of_other_shards_are_refused(
    in_parts: tuple[tuple[Shard, ...], tuple[Part, ...]], tmp_path: Path
) -> None:
    shards, parts = in_parts
    with pytest.raises(LabelDataError, match=r"the parts of .*2\.parquet hold 36 rows; expected its 44"):
        LabelReader(str(tmp_path), parts[:-1], shards)


def test_parts_in_another_order_are_refused(
    in_parts: tuple[tuple[Shard, ...], tuple[Part, ...]], tmp_path: Path
) -> None:
    shards, parts = in_parts
    swapped = (parts[1], parts[0], *parts[2:])
    data = TrainData(shards, LabelReader(str(tmp_path), swapped, shards))
    with pytest.raises(LabelDataError, match="expected the rows 0 to 36 in order"):
        shard_labels(data, 0, num_positive=3, num_classes=NUM_CLASSES)


def test_shards_are_not_opened_to_learn_their_row_groups(whole: TrainData) -> None:
    nowhere = tuple(replace(shard, uri=f"/nowhere/{shard.uri}") for shard in whole.shards)
    with BatchReader(replace(whole, shards=nowhere), tiny_spec(), Ranks(None), num_classes=NUM_CLASSES) as reader:
        assert reader.lanes.num_rows > 0
