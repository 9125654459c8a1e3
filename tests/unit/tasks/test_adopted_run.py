"""A run that adopts vectors: what does not fit is refused before the start, what fits becomes a committed stage."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mlcd_core
from mlcd_core.dataset import spans_of
from mlcd_core.errors import ConfigError, DataError
from mlcd_core.store import StageFolder
from mlcd_core.tables import RowStatus
from tasks.adopted import check_adopted_run
from tasks.embed import resolved_embed_spec
from tasks.embed_worker import UnitEmbedder, reads_of
from tasks.run import Request, Run, open_run
from tasks.run_record import RunRecord
from tasks.work import settings, stage_work

KEYS = [f"{i:03d}" for i in range(25)]
MISSING = {"007", "013"}


def vector(key: str) -> list[float]:
    """Of length 5, in a direction of its own."""
    return [5 * np.cos(int(key)), 5 * np.sin(int(key))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of images, and vectors of all but two keys in another order and cut."""
    for name, keys in (("a", KEYS[:20]), ("b", KEYS[20:])):
        (tmp_path / "data").mkdir(exist_ok=True)
        table = pa.table({"uid": keys, "jpg": [b"never decoded"] * len(keys)})
        pq.write_table(table, tmp_path / "data" / f"{name}.parquet", row_group_size=6)
    (tmp_path / "vectors").mkdir()
    there = [key for key in reversed(KEYS) if key not in MISSING]
    for number in range(2):
        keys = there[number::2]
        table = pa.table({"uid": keys, "vector": pa.array(map(vector, keys), pa.list_(pa.float32()))})
        pq.write_table(table, tmp_path / "vectors" / f"{number}.parquet", row_group_size=4)
    return tmp_path


def run_of(folder: Path, **settings: object) -> Run:
    adopts = {"embedder": "adopted", "vectors": str(folder / "vectors"), "key_column": "uid", "rows_per_unit": 8}
    overrides = {f"embed.{key}": value for key, value in (adopts | settings).items()}
    return open_run(Request(root=str(folder / "root"), data=str(folder / "data"), overrides=overrides))


def test_adopted_vectors_become_a_committed_stage_row_for_row(folder: Path) -> None:
    run = run_of(folder)
    source = check_adopted_run(run)
    assert source is not None
    assert (source.files, source.rows, source.dim) == (2, len(KEYS) - len(MISSING), 2)
    assert source.norms == pytest.approx((5, 5))

    work = stage_work("embed", run, {})
    stage = StageFolder(run.files, work.spec)
    stage.open()
    _, runtime = settings(run, "embed")
    worker = UnitEmbedder(run.files.uri(""), work.spec, runtime)
    spans = spans_of(run.shards, work.spec.rows_per_unit)
    assert len(spans) > len(run.shards)
    for task in stage.plan(work.inputs, work.units).pending:
        worker(task, reads_of(spans[task.index]))
    manifest = stage.seal(work.inputs, stage.receipts(work.units), attempt=1, expected_rows=work.expected_rows)
    RunRecord(run.files, "default").note("embed", stage.fingerprint, work, manifest)

    table = mlcd_core.open_run(folder / "root").embeddings()
    assert table["key"].to_pylist() == KEYS
    assert table["status"].to_pylist() == [RowStatus.NO_VECTOR if key in MISSING else RowStatus.OK for key in KEYS]
    expected_ND = np.array([[0, 0] if key in MISSING else vector(key) for key in KEYS], np.float32).astype(float) / 5
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist(), float), expected_ND, atol=2**-11)
    assert (manifest.rows, manifest.usable) == (len(KEYS), len(KEYS) - len(MISSING))


def test_other_vectors_are_another_stage(folder: Path) -> None:
    before = stage_work("embed", run_of(folder), {}).spec
    path = folder / "vectors" / "0.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    assert stage_work("embed", run_of(folder), {}).spec.weights_sha256 != before.weights_sha256


def test_vectors_are_those_of_the_digest_that_is_given_or_refused(folder: Path) -> None:
    digest = resolved_embed_spec(run_of(folder)).weights_sha256
    assert resolved_embed_spec(run_of(folder, weights_sha256=digest)).weights_sha256 == digest
    other = "ab" * 32
    said = f"have the digest {digest}, expected embed.weights_sha256={other}: .* clear embed.weights_sha256"
    with pytest.raises(ConfigError, match=said):
        resolved_embed_spec(run_of(folder, weights_sha256=other))


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        (
            {"key_column": "nokey"},
            DataError,
            r"has no column 'nokey', by which vectors are found; its columns are uid, jpg",
        ),
        ({"vectors": ""}, ConfigError, "set embed.vectors"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    folder: Path, settings: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        check_adopted_run(run_of(folder, **settings))


def test_vectors_of_other_data_are_refused(folder: Path) -> None:
    for path in (folder / "vectors").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.set_column(0, "uid", pa.array([f"x{i}" for i in range(len(table))])), path)
    with pytest.raises(DataError, match="the data has 000, 001, 002; the vectors have x0, x1, x2"):
        check_adopted_run(run_of(folder))


def test_a_run_that_embeds_by_itself_adopts_nothing(folder: Path) -> None:
    assert check_adopted_run(run_of(folder, embedder="hog_words", vectors="")) is None
