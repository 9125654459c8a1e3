"""A run is opened with the shards that can be read and knows those that cannot; wrong columns are refused at once."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlcd_core.errors import DataError
from tasks.run import Request, Run, open_run

ROWS = {"jpg": [b"1", b"2"], "label": [0, 1], "caption": ["a", "b"]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").write_bytes(b"no Parquet")
    pq.write_table(pa.table(ROWS), tmp_path / "data" / "b.parquet")
    return tmp_path / "data"


def opened(data: Path, **request: Any) -> Run:
    return open_run(Request(root=str(data.parent / "root"), data=str(data), **request))


def test_a_shard_that_is_not_whole_stays_without_rows_and_is_identified(data: Path) -> None:
    run = opened(data, label_column="label")
    assert [(Path(shard.uri).name, shard.rows, bool(shard.error)) for shard in run.shards] == [
        ("a.parquet", 0, True),
        ("b.parquet", 2, False),
    ]
    (data / "a.parquet").write_bytes(b"other bytes")
    assert opened(data).data_digest != run.data_digest


def test_when_no_shard_can_be_read_the_first_is_named(data: Path) -> None:
    (data / "b.parquet").write_bytes(b"neither")
    with pytest.raises(DataError, match=r"a\.parquet is not a whole Parquet file"):
        opened(data)


def test_columns_are_looked_up_in_the_first_shard_that_can_be_read(data: Path) -> None:
    with pytest.raises(DataError, match=r"no label column 'class' in .*b\.parquet"):
        opened(data, label_column="class")
    overrides = {"embed.embedder": "open_clip", "embed.feature": "image_text_mean", "embed.caption_column": "text"}
    with pytest.raises(DataError, match=r"no caption column 'text' of strings in .*b\.parquet"):
        opened(data, overrides=overrides)
    opened(data, overrides={**overrides, "embed.caption_column": "caption"})


def test_evaluation_data_must_be_whole(data: Path) -> None:
    with pytest.raises(DataError, match=r"a\.parquet is not a whole Parquet file"):
        opened(data, eval_data=str(data), label_column="label")
