"""Embedding in real Ray: units of spans, units that cannot be done, the error budget, and doing them again.

One Ray session serves the module; each test has a root of its own.
"""

import io
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

from mlcd_core.embedding import embed_shard
from mlcd_core.errors import StageFailedError
from mlcd_core.events import silent
from mlcd_core.images.embed_shard import read_ipc
from mlcd_core.images.embedder import build_embedder, find_weights
from mlcd_core.dataset import ShardReader
from mlcd_core.store import Manifest, StageFolder, read_part
from tasks import embed
from tasks.ray_session import RaySession
from tasks.run import Request, open_run
from tasks.stage import _make
from tasks.work import Job, stage_work
from tests.integration.crashing_embedder import DEADLY, CrashingEmbedder, broken_decoder_of

# Ray Data warns of its own settings when a driver loads it
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")

GENEROUS = {"embed.max_bad_share": 1, "embed.max_bad_share_shard": 1}


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()


def write_shard(path: Path, images: list[bytes | None], *, group_rows: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [f"{path.stem}-{row}" for row in range(len(images))]
    pq.write_table(pa.table({"key": keys, "jpg": images}), path, row_group_size=group_rows)


def pictures(count: int, first: int = 0) -> list[bytes | None]:
    return [picture(seed) for seed in range(first, first + count)]


class World:
    """A folder of shards and a root beside it."""

    def __init__(self, folder: Path, session: RaySession) -> None:
        self.data = folder / "data"
        self.root = folder / "root"
        self._session = session
        self.events: list[Mapping[str, Any]] = []
        self.units_run = 0

    def embed(self, *, retry_failed: bool = False, session: Any = None, **settings: Any) -> Manifest:
        """Bring the stage to its manifest, as ``run_stage`` does without a Prefect server."""
        given = {key.replace("__", "."): value for key, value in settings.items()}
        overrides = {"embed.rows_per_unit": 20, "embed.batch_rows": 8, **given}
        run = open_run(Request(root=str(self.root), data=str(self.data), overrides=overrides))
        work = stage_work("embed", run, {})
        folder = StageFolder(run.files, work.spec)
        plan = folder.plan(work.inputs, work.units, folder.failed_units(work.units) if retry_failed else ())
        self.units_run = len(plan.pending)
        if plan.manifest is not None:
            return plan.manifest
        work = replace(work, make=lambda job: make(replace(job, report=self._hear))) if (make := work.make) else work
        return _make(work, Job(folder, plan, session or self._session, silent))

    def table(self, manifest: Manifest) -> pa.Table:
        run = open_run(Request(root=str(self.root), data=str(self.data)))
        return pa.concat_tables([read_ipc(read_part(run.files, part)) for part in manifest.parts])

    def _hear(self, event: str, values: Mapping[str, Any]) -> None:
        self.events.append({"event": event, **values})


class NoRay:
    """A session for runs that must not need one."""

    def start(self) -> None:
        raise AssertionError("Ray was started")


@pytest.fixture(scope="module")
def session() -> Iterator[RaySession]:
    with RaySession(most_workers=2) as session:
        yield session


@pytest.fixture
def world(tmp_path: Path, session: RaySession) -> World:
    return World(tmp_path, session)


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "UnitEmbedder", CrashingEmbedder)


def test_units_are_spans_and_hold_what_one_process_makes_of_the_shard(world: World) -> None:
    write_shard(world.data / "a.parquet", pictures(50))
    write_shard(world.data / "b.parquet", [*pictures(4, 50), None])
    manifest = world.embed()
    a, b = str(world.data / "a.parquet"), str(world.data / "b.parquet")
    assert manifest.provenance["sources"] == [[a, 0, 20], [a, 20, 20], [a, 40, 10], [b, 0, 5]]
    assert manifest.metrics == {"status": {"ok": 54, "null_bytes": 1}, "failed_units": []}
    table = world.table(manifest)
    assert table["row"].to_pylist() == [*range(50), *range(5)]
    assert table["key"].to_pylist() == [*(f"a-{row}" for row in range(50)), *(f"b-{row}" for row in range(5))]
    run = open_run(Request(root=str(world.root), data=str(world.data)))
    spec = embed.resolved_embed_spec(run)
    embedder = build_embedder(spec, weights=find_weights(spec, ""), device="cpu")
    with ThreadPoolExecutor(1) as pool:
        alone = [embed_shard(ShardReader(shard), embedder=embedder, spec=spec, pool=pool) for shard in run.shards]
    expected, found = (t["embedding"].combine_chunks().flatten().to_numpy() for t in (pa.concat_tables(alone), table))
    np.testing.assert_allclose(found.astype(float), expected.astype(float), atol=2e-3)


def test_what_is_told_of_progress_adds_up(world: World) -> None:
    write_shard(world.data / "a.parquet", pictures(50))
    world.embed()
    last = world.events[-1]
    assert (last["done"], last["total"], last["rows"], last["device"]) == (3, 3, 50, "cpu")
    assert last["eta_s"] == 0
    assert last["storage_share"] + last["decode_share"] + last["model_share"] == pytest.approx(1)


def test_one_and_two_workers_make_the_same_bytes(world: World, tmp_path: Path) -> None:
    for shard in range(3):
        write_shard(world.data / f"{shard}.parquet", pictures(40, 40 * shard))
    one = world.embed(embed__workers=1)
    world.root = tmp_path / "other"
    two = world.embed(embed__workers=2, embed__threads=2)
    assert one.digest == two.digest


@pytest.mark.usefixtures("crashing")
def test_an_image_that_kills_its_worker_costs_its_unit_and_no_other(world: World) -> None:
    deadly = picture(5) + DEADLY
    write_shard(world.data / "a.parquet", [*pictures(5), deadly, *pictures(44, 6)])
    write_shard(world.data / "b.parquet", pictures(20, 50))
    broken_decoder_of(world.root).touch()
    manifest = world.embed(**GENEROUS)
    a = str(world.data / "a.parquet")
    assert manifest.metrics["status"] == {"ok": 50, "worker_died": 20}
    assert manifest.metrics["failed_units"] == [{"source": a, "rows": 20, "status": "worker_died"}]
    table = world.table(manifest)
    assert table["status"].to_pylist()[:20] == [8] * 20
    assert not table["embedding"].combine_chunks().flatten().to_numpy()[: 20 * 128].any()
    assert len(set(table["key"].to_pylist())) == 70
    assert broken_decoder_of(f"{a}-0").read_text().count("begun") == 3

    assert world.embed(**GENEROUS, session=NoRay()) == manifest
    broken_decoder_of(world.root).unlink()
    mended = world.embed(**GENEROUS, retry_failed=True)
    assert world.units_run == 1
    assert (mended.attempt, mended.metrics) == (2, {"status": {"ok": 70}, "failed_units": []})
    assert mended.parts[1:] == tuple(replace(part) for part in manifest.parts[1:])
    assert world.embed(**GENEROUS, retry_failed=True, session=NoRay()) == mended


def test_shards_that_cannot_be_read_are_failed_units(world: World) -> None:
    write_shard(world.data / "a.parquet", pictures(20))
    write_shard(world.data / "b.parquet", pictures(20, 20))
    whole = (world.data / "b.parquet").read_bytes()
    (world.data / "b.parquet").write_bytes(whole[:200] + bytes(byte ^ 255 for byte in whole[200:4000]) + whole[4000:])
    (world.data / "c.parquet").write_bytes(b"PAR1 no footer PAR1")
    manifest = world.embed(**GENEROUS)
    b, c = str(world.data / "b.parquet"), str(world.data / "c.parquet")
    assert manifest.metrics == {
        "status": {"ok": 20, "unreadable": 20},
        "failed_units": [
            {"source": b, "rows": 20, "status": "unreadable"},
            {"source": c, "rows": 0, "status": "unreadable"},
        ],
    }
    assert [part.rows for part in manifest.parts] == [20, 20, 0]
    assert len(set(world.table(manifest)["key"].to_pylist())) == 40


def test_over_the_budget_nothing_seals_and_a_higher_one_seals_what_is_there(world: World) -> None:
    write_shard(world.data / "a.parquet", pictures(20))
    write_shard(world.data / "b.parquet", [*pictures(17, 20), b"<html>", None, b"<html>"])
    with pytest.raises(StageFailedError, match=r"7\.5%.*accepted are 5\.0%.*b\.parquet \(.*2 not_an_image"):
        world.embed()
    assert not list(world.root.rglob("manifests/*.json"))
    with pytest.raises(StageFailedError, match="max_bad_share=0.08"):
        world.embed(session=NoRay())
    manifest = world.embed(embed__max_bad_share=0.08, session=NoRay())
    assert (manifest.usable, manifest.rows) == (37, 40)


def test_it_stops_early_when_the_budget_is_certainly_spent(world: World) -> None:
    for shard in range(20):
        write_shard(world.data / f"{shard:02d}.parquet", [None] * 10 if shard < 4 else pictures(10))
    with pytest.raises(StageFailedError):
        world.embed()
    assert len(list(world.root.rglob("units/*.json"))) < 20
