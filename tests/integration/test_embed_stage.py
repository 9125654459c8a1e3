"""Embedding in real Ray: units of spans, units that cannot be done, doing them again, and stopping early.

One Ray session serves the module; each test has a root of its own.
"""

import io
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mlcd_core.dataset import ShardReader
from mlcd_core.embedding import embed_shard
from mlcd_core.errors import StageFailedError
from mlcd_core.events import silent
from mlcd_core.images.embed_shard import read_ipc
from mlcd_core.images.embedder import build_embedder, find_weights
from mlcd_core.store import Manifest, StageFolder, read_part
from mlcd_core.tables import RowStatus
from tasks import embed
from tasks.lease import stage_lease
from tasks.ray_session import RaySession
from tasks.run import Request, Run, open_run
from tasks.stage import _make
from tasks.work import Job, stage_work
from tests.integration.crashing_embedder import DEADLY, CrashingEmbedder, broken_decoder_of
from tests.unit.tasks.in_process import last_unit_first

# Ray Data warns of its own settings when a driver loads it
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")

GENEROUS = {"embed__max_bad_share": 1, "embed__max_bad_share_shard": 1}
SMALL = {"embed.rows_per_unit": 20, "embed.batch_rows": 8}


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()


def pictures(count: int, first: int = 0) -> list[bytes | None]:
    return [picture(seed) for seed in range(first, first + count)]


def write_shard(path: Path, images: list[bytes | None]) -> None:
    path.parent.mkdir(exist_ok=True)
    keys = [f"{path.stem}-{row}" for row in range(len(images))]
    pq.write_table(pa.table({"key": keys, "jpg": images}), path, row_group_size=10)


class World:
    """A folder of shards and a root beside it."""

    def __init__(self, folder: Path, session: RaySession) -> None:
        self.data = folder / "data"
        self.root = folder / "root"
        self.events: list[Mapping[str, Any]] = []
        self._session = session

    def run(self, **settings: Any) -> Run:
        overrides = {**SMALL, **{key.replace("__", "."): value for key, value in settings.items()}}
        return open_run(Request(root=str(self.root), data=str(self.data), overrides=overrides))

    def embed(self, *, retry_failed: bool = False, session: Any = None, **settings: Any) -> Manifest:
        """Bring the stage to its manifest, as ``run_stage`` does without a Prefect server."""
        run = self.run(**settings)
        work = stage_work("embed", run, {})
        folder = StageFolder(run.files, work.spec)
        plan = folder.plan(work.inputs, work.units, folder.failed_units(work.units) if retry_failed else ())
        if plan.manifest is not None:
            return plan.manifest
        heard = replace(work, make=lambda job: work.make(replace(job, report=self._hear)))
        with stage_lease(folder, work.inputs, run="test", log=logging.getLogger("mlcd")) as lease:
            return _make(heard, Job(folder, plan, session or self._session, silent), lease, workers=2)

    def table(self, manifest: Manifest) -> pa.Table:
        return pa.concat_tables([read_ipc(read_part(self.run().files, part)) for part in manifest.parts])

    def _hear(self, event: str, values: Mapping[str, Any]) -> None:
        self.events.append({"event": event, **values})


class NoRay:
    """A session for what must not need one."""

    def start(self) -> None:
        raise AssertionError("Ray was started")


@pytest.fixture(scope="module")
def session() -> Iterator[RaySession]:
    with RaySession(most_workers=2) as session:
        yield session


@pytest.fixture
def world(tmp_path: Path, session: RaySession) -> World:
    return World(tmp_path, session)


def matrix(table: pa.Table) -> np.ndarray:
    return table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1).astype(float)


def by_one_process(run: Run) -> pa.Table:
    """Whole shards, without units."""
    spec = embed.resolved_embed_spec(run)
    embedder = build_embedder(spec, weights=find_weights(spec, ""), device="cpu")
    with ThreadPoolExecutor(1) as pool:
        tables = [embed_shard(ShardReader(shard), embedder=embedder, spec=spec, pool=pool) for shard in run.shards]
    return pa.concat_tables(tables)


def test_two_workers_make_the_bytes_of_one_process_and_nothing_is_lost_or_moved(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(world.data / "a.parquet", pictures(50))
    write_shard(world.data / "b.parquet", [*pictures(34, 50), None])
    two = world.embed(embed__workers=2, embed__threads=2)
    a, b = str(world.data / "a.parquet"), str(world.data / "b.parquet")
    assert two.provenance["sources"] == [[a, 0, 20], [a, 20, 20], [a, 40, 10], [b, 0, 20], [b, 20, 15]]
    assert two.metrics == {"status": {"ok": 84, "null_bytes": 1}, "failed_units": []}

    last = world.events[-1]
    assert (last["done"], last["total"], last["rows"], last["device"], last["eta_s"]) == (5, 5, 85, "cpu", 0)
    assert last["storage_share"] + last["decode_share"] + last["model_share"] == pytest.approx(1)

    table, expected = world.table(two), by_one_process(world.run())
    for column in ("row", "key", "status"):
        assert table[column].to_pylist() == expected[column].to_pylist()
    np.testing.assert_allclose(matrix(table), matrix(expected), atol=2e-3)

    world.root = tmp_path / "other"
    monkeypatch.setattr(embed, "run_units", last_unit_first)
    assert world.embed().digest == two.digest


def test_what_cannot_be_done_costs_its_unit_and_no_other_and_can_be_done_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that kills the decoder's process, pages that cannot be read, and a file that is no Parquet."""
    monkeypatch.setattr(embed, "UnitEmbedder", CrashingEmbedder)
    write_shard(world.data / "a.parquet", [*pictures(5), picture(5) + DEADLY, *pictures(44, 6)])
    write_shard(world.data / "b.parquet", pictures(20, 50))
    whole = (world.data / "b.parquet").read_bytes()
    (world.data / "b.parquet").write_bytes(whole[:200] + bytes(byte ^ 255 for byte in whole[200:4000]) + whole[4000:])
    (world.data / "c.parquet").write_bytes(b"PAR1 no footer PAR1")
    a, b, c = (str(world.data / f"{name}.parquet") for name in "abc")
    broken_decoder_of(world.root).touch()
    manifest = world.embed(**GENEROUS)
    assert manifest.metrics == {
        "status": {"ok": 30, "worker_died": 20, "unreadable": 20},
        "failed_units": [
            {"source": a, "rows": 20, "status": "worker_died"},
            {"source": b, "rows": 20, "status": "unreadable"},
            {"source": c, "rows": 0, "status": "unreadable"},
        ],
    }
    assert [part.rows for part in manifest.parts] == [20, 20, 10, 20, 0]
    table = world.table(manifest)
    died, unread = RowStatus.WORKER_DIED, RowStatus.UNREADABLE
    assert table["status"].to_pylist() == [died] * 20 + [RowStatus.OK] * 30 + [unread] * 20
    assert matrix(table).any(axis=1).tolist() == [False] * 20 + [True] * 30 + [False] * 20
    assert len(set(table["key"].to_pylist())) == 70
    begun = {start: broken_decoder_of(f"{a}-{start}").read_text().count("begun") for start in (0, 20, 40)}
    assert begun[0] == 3
    assert max(begun[20], begun[40]) <= 2, "a neighbour was in the process at most once when it died"

    broken_decoder_of(world.root).unlink()
    mended = world.embed(**GENEROUS, retry_failed=True)
    assert (mended.attempt, mended.metrics["status"]) == (2, {"ok": 50, "unreadable": 20})
    assert [unit["source"] for unit in mended.metrics["failed_units"]] == [b, c]
    assert mended.parts[1:] == manifest.parts[1:]
    assert world.embed(session=NoRay(), **GENEROUS) == mended


def test_it_stops_as_soon_as_the_budget_is_certainly_spent(world: World) -> None:
    for shard in range(20):
        write_shard(world.data / f"{shard:02d}.parquet", [b"<html>"] * 10 if shard < 4 else pictures(10, 10 * shard))
    with pytest.raises(StageFailedError, match=r"accepted are 5\.0%.*00\.parquet \(10 not_an_image of 10\)"):
        world.embed(embed__max_bad_share_shard=1)
    assert len(list(world.root.rglob("units/*.json"))) < 20
    assert not list(world.root.rglob("manifests/*.json"))
