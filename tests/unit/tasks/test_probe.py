"""What a probe runs on, without running it: the first rows as they are, in units of two sizes."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mlcd_core.errors import ConfigError
from mlcd_core.images.digit_scenes import scene_parquet_bytes
from tasks.probe import ROWS, UNIT_ROWS, _write_sample, probe
from tasks.run import Request, Run, open_run

SHARD_ROWS = 40


@pytest.fixture
def run(tmp_path: Path) -> Run:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        (data / f"{number}.parquet").write_bytes(scene_parquet_bytes("train", number, SHARD_ROWS, 0))
    (data / "1.parquet").write_bytes(b"PAR1 is not all it takes PAR1")
    return open_run(Request(str(tmp_path / "root"), data=str(data), label_column="labels"))


def test_a_sample_is_the_first_rows_of_the_shards_that_can_be_read(run: Run, tmp_path: Path) -> None:
    assert _write_sample(run, run.shards, tmp_path / "sample.parquet", 50) == 50
    sample = pq.read_table(tmp_path / "sample.parquet")
    whole = [pq.read_table(tmp_path / "data" / f"{number}.parquet") for number in (0, 2)]
    # the sample's images are in the first column that auto looks for
    for column, source in (("key", "key"), ("jpg", "png"), ("labels", "labels")):
        assert sample[column].to_pylist() == (whole[0][source].to_pylist() + whole[1][source].to_pylist())[:50]


def test_less_data_is_all_of_it(run: Run, tmp_path: Path) -> None:
    assert _write_sample(run, run.shards, tmp_path / "sample.parquet", ROWS) == 2 * SHARD_ROWS


def test_the_last_unit_is_a_short_one() -> None:
    assert 0 < ROWS % UNIT_ROWS < UNIT_ROWS / 2


@pytest.mark.parametrize("override", [{"embed.embedder": "tower"}, {"train.start_from": "a" * 64}])
def test_what_begins_from_this_root_cannot_be_probed_elsewhere(
    run: Run, tmp_path: Path, override: dict[str, str]
) -> None:
    section, _, field = next(iter(override)).partition(".")
    changed = getattr(run.config, section).model_copy(update={field: next(iter(override.values()))})
    other = Run(
        run.request, run.files, run.config.model_copy(update={section: changed}), run.shards, (), run.label_column
    )
    with pytest.raises(ConfigError, match="plan without --probe"):
        probe(other, tmp_path / "probe", num_centroids=10)
