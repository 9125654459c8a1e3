"""The embed stage without Ray: its units run in this process, everything around them is the stage's own."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mlcd_core.errors import DataError, StageFailedError
from mlcd_core.events import silent
from mlcd_core.images.embed_shard import read_ipc
from mlcd_core.store import Manifest, StageFolder, StagePlan, read_part
from tasks import embed
from tasks.embed import resolved_embed_spec
from tasks.embed_worker import UnitEmbedder, reads_of, span_of
from tasks.run import Request, Run, open_run
from tasks.tables import stage_note
from tasks.work import Job, StageWork, stage_work
from tests.unit.tasks.in_process import in_this_process


def picture(seed: int, side: int = 32) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()


PICTURES = [picture(seed) for seed in range(20)]
BAD = b"<html>"


class NoRay:
    """A session for what must not need one."""

    def start(self) -> None:
        raise AssertionError("Ray was started")


class Session:
    """A session that counts its starts."""

    def __init__(self) -> None:
        self.starts = 0

    def start(self) -> None:
        self.starts += 1


class World:
    """A folder of shards, and a root beside it."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.root = folder / "root"
        self.data.mkdir()

    def write(self, name: str, images: Sequence[bytes | None], **columns: Any) -> Path:
        path = self.data / f"{name}.parquet"
        keys = [f"{name}-{row}" for row in range(len(images))]
        pq.write_table(pa.table({"key": keys, "jpg": images, **columns}), path, row_group_size=5)
        return path

    def damage(self, name: str) -> Path:
        """Turn over bytes of the pages; the footer stays."""
        path = self.data / f"{name}.parquet"
        data = path.read_bytes()
        path.write_bytes(data[:200] + bytes(byte ^ 255 for byte in data[200:3000]) + data[3000:])
        return path

    def run(self, **settings: Any) -> Run:
        overrides = {"embed.rows_per_unit": 10, **{key.replace("__", "."): v for key, v in settings.items()}}
        return open_run(Request(root=str(self.root), data=str(self.data), overrides=overrides))

    def planned(self, run: Run, *, retry_failed: bool = False) -> tuple[StageWork, StageFolder, StagePlan]:
        work = stage_work("embed", run, {})
        folder = StageFolder(run.files, work.spec)
        redo = folder.failed_units(work.units) if retry_failed else ()
        return work, folder, folder.plan(work.inputs, work.units, redo)

    def embed(self, *, retry_failed: bool = False, session: Any = None, **settings: Any) -> Manifest:
        work, folder, plan = self.planned(self.run(**settings), retry_failed=retry_failed)
        if plan.manifest is not None:
            return plan.manifest
        made = work.make(Job(folder, plan, session or Session(), silent))
        return folder.seal(
            work.inputs,
            made.receipts,
            attempt=plan.attempt,
            expected_rows=work.expected_rows,
            metrics=made.metrics,
            notes=made.notes,
        )

    def receipts(self, **settings: Any) -> list[dict[str, Any]]:
        """The provenance of all units."""
        run = self.run(**settings)
        work = stage_work("embed", run, {})
        return [receipt.provenance for receipt in StageFolder(run.files, work.spec).receipts(work.units)]

    def table(self, manifest: Manifest) -> pa.Table:
        return pa.concat_tables([read_ipc(read_part(self.run().files, part)) for part in manifest.parts])


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(embed, "run_units", in_this_process)
    return World(tmp_path)


def test_a_span_travels_as_json(world: World) -> None:
    world.write("a", PICTURES)
    for span in embed.spans_of(world.run().shards, 10):
        assert span_of(reads_of(span)) == span


def test_a_big_shard_is_several_units_and_the_manifest_says_of_which_rows(world: World) -> None:
    a, b = world.write("a", PICTURES), world.write("b", PICTURES[:4])
    manifest = world.embed()
    assert manifest.provenance["sources"] == [[str(a), 0, 10], [str(a), 10, 10], [str(b), 0, 4]]
    assert manifest.provenance["devices"] == ["cpu"]
    assert world.table(manifest)["row"].to_pylist() == [*range(20), *range(4)]
    assert stage_note(manifest) == "every row usable"


def test_receipts_say_what_they_are_of_and_where_the_time_went(world: World) -> None:
    a = world.write("a", PICTURES)
    world.embed()
    first, second = world.receipts()
    digest = world.run().shards[0].digest
    assert [(r["source"], r["digest"], r["first_row"], r["rows"]) for r in (first, second)] == [
        (str(a), digest, 0, 10),
        (str(a), digest, 10, 10),
    ]
    assert set(first["seconds"]) == {"read", "decode", "model", "commit"}
    assert first["device"] == "cpu"


def test_fast_decoding_says_how_far_it_is_from_exact_on_some_images_of_each_unit(world: World) -> None:
    world.write("a", [picture(seed, side=200) for seed in range(12)])
    psnr = world.embed(embed__decode="fast").metrics["fast_decode_psnr"]
    assert psnr["images"] == 4 + 2
    assert 10 < psnr["worst_db"] < psnr["mean_db"] < 100
    assert "fast_decode_psnr" not in world.embed().metrics


def test_fast_decoding_that_changed_nothing_has_no_figure(world: World) -> None:
    world.write("a", PICTURES)
    assert "fast_decode_psnr" not in world.embed(embed__decode="fast").metrics


def test_a_shard_twice_is_one_unit_and_its_rows_count_twice(world: World) -> None:
    world.write("a", [*PICTURES[:9], BAD])
    (world.data / "b.parquet").write_bytes((world.data / "a.parquet").read_bytes())
    manifest = world.embed(embed__max_bad_share=0.1)
    assert manifest.metrics["status"] == {"ok": 18, "not_an_image": 2}
    assert manifest.parts[0].path == manifest.parts[1].path
    with pytest.raises(StageFailedError, match="2 of 20 rows"):
        world.embed(embed__max_bad_share=0.09, embed__batch_rows=5)


def test_pages_that_cannot_be_read_are_a_failed_unit_with_made_keys(world: World) -> None:
    world.write("a", PICTURES)
    world.write("b", PICTURES[:10])
    b = world.damage("b")
    manifest = world.embed(embed__max_bad_share=0.5)
    assert manifest.metrics == {
        "status": {"ok": 20, "unreadable": 10},
        "failed_units": [{"source": str(b), "rows": 10, "status": "unreadable"}],
    }
    digest = world.run().shards[1].digest
    table = world.table(manifest)[20:]
    assert table["key"].to_pylist() == [f"{digest[:12]}-{row:06d}" for row in range(10)]
    assert table["row"].to_pylist() == list(range(10))
    assert not table["embedding"].combine_chunks().flatten().to_numpy().any()
    assert "row group" in world.receipts(embed__max_bad_share=0.5)[2]["error"]
    assert stage_note(manifest) == f"1 unit unreadable: {b}"


def test_a_file_without_a_footer_is_a_failed_unit_without_rows(world: World) -> None:
    world.write("a", PICTURES)
    (world.data / "b.parquet").write_bytes(b"<html>not found</html>")
    manifest = world.embed(embed__max_bad_share=0.5)
    assert [(part.rows, part.counts) for part in manifest.parts[2:]] == [(0, {"unreadable": 0})]
    assert manifest.metrics["status"] == {"ok": 20}
    assert [unit["rows"] for unit in manifest.metrics["failed_units"]] == [0]


def test_a_unit_that_is_given_up_is_not_read(world: World) -> None:
    """Its keys are made, though the shard has some."""
    world.write("a", PICTURES[:10])
    run = world.run()
    work, folder, plan = world.planned(run)
    folder.open()
    [span] = embed.spans_of(run.shards, 10)
    worker = UnitEmbedder(str(world.root), resolved_embed_spec(run), run.config.embed)
    (world.data / "a.parquet").unlink()
    said = worker.give_up(plan.pending[0], reads_of(span))
    assert (said["rows"], said["counts"]) == (10, {"worker_died": 10})
    [receipt] = folder.receipts(work.units)
    table = read_ipc(read_part(run.files, receipt.parts[0]))
    assert table["key"][0].as_py() == f"{span.shard.digest[:12]}-000000"


def test_a_shard_that_is_gone_is_an_error_and_no_status(world: World) -> None:
    world.write("a", PICTURES)
    run = world.run()
    work, folder, plan = world.planned(run)
    folder.open()
    (world.data / "a.parquet").unlink()
    with pytest.raises(DataError, match="is gone"):
        work.make(Job(folder, plan, Session(), silent))
    assert not list(world.root.rglob("units/*.json"))


def test_over_the_budget_nothing_seals_and_a_higher_one_seals_what_is_there_without_ray(world: World) -> None:
    world.write("a", PICTURES)
    b = world.write("b", [*PICTURES[:17], BAD, None, BAD])
    with pytest.raises(StageFailedError) as raised:
        world.embed()
    for text in ("3 of 40 rows (7.5%)", "accepted are 5.0%", f"{b} (1 null_bytes, 2 not_an_image of 20)"):
        assert text in str(raised.value)
    with pytest.raises(StageFailedError, match=r"max_bad_share=0\.08"):
        world.embed(session=NoRay())
    manifest = world.embed(embed__max_bad_share=0.08, session=NoRay())
    assert (manifest.usable, manifest.rows) == (37, 40)
    assert stage_note(manifest) == "1 null_bytes, 2 not_an_image"


def test_work_that_is_certain_to_end_over_the_budget_is_not_begun(world: World) -> None:
    world.write("a", PICTURES)
    (world.data / "b.parquet").write_bytes(b"<html>not found</html>")
    with pytest.raises(StageFailedError, match=r"b\.parquet \(unreadable\)"):
        world.embed(session=NoRay())


def test_retrying_does_what_failed_and_nothing_else(world: World) -> None:
    world.write("a", PICTURES)
    whole = world.write("b", PICTURES[:10]).read_bytes()
    b = world.damage("b")
    damaged = b.read_bytes()
    old = world.embed(embed__max_bad_share=0.5)
    failed_again = world.embed(embed__max_bad_share=0.5, retry_failed=True)
    assert (failed_again.attempt, failed_again.digest) == (2, old.digest)
    assert [attempt for _, attempt, _ in failed_again.provenance["units"]] == [1, 1, 2]
    # a mended shard is another one, so its unit is new and needs no retry
    b.write_bytes(whole)
    mended = world.embed()
    assert (mended.attempt, mended.usable, mended.inputs) == (1, 30, {"data": world.run().data_digest})
    b.write_bytes(damaged)
    assert world.embed(embed__max_bad_share=0.5, session=NoRay()) == failed_again


def test_retrying_where_nothing_failed_is_a_cached_run(world: World) -> None:
    world.write("a", [*PICTURES, BAD])
    manifest = world.embed()
    assert world.embed(retry_failed=True, session=NoRay()) == manifest


def test_vectors_made_elsewhere_are_looked_up_by_key(world: World, tmp_path: Path) -> None:
    world.write("a", PICTURES[:12])
    vectors = np.random.default_rng(0).standard_normal((11, 6)).astype(np.float32)
    keys = [f"a-{row}" for row in reversed(range(11))]  # the last row has none
    made = pa.table({"key": keys, "vector": pa.array(list(vectors), pa.list_(pa.float32(), 6))})
    (tmp_path / "vectors").mkdir()
    pq.write_table(made, tmp_path / "vectors" / "0.parquet")
    settings = {"embed__embedder": "adopted", "embed__vectors": str(tmp_path / "vectors"), "embed__max_bad_share": 0.1}
    manifest = world.embed(**settings)
    assert manifest.metrics["status"] == {"ok": 11, "no_vector": 1}
    table = world.table(manifest)
    found = table["embedding"].combine_chunks().flatten().to_numpy().reshape(12, 6)
    expected = vectors[::-1] / np.linalg.norm(vectors[::-1], axis=1, keepdims=True)
    np.testing.assert_allclose(found[:11].astype(float), expected, atol=1e-3)
    assert table["row"].to_pylist() == list(range(12))
