"""What is made anew: for a byte of weights or a setting, all units; for a shard changed or added, its own units."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlcd_core.images.embedder import find_weights
from mlcd_core.specs import EmbedSpec
from mlcd_core.store import StageFolder, StagePlan
from tasks.embed import embed_work
from tasks.run import Request, Run, open_run

SHARDS, ROWS = 4, 250
UNITS = 3 * SHARDS  # of one row group each: 100, 100 and 50 rows
SETTINGS = {"embed.rows_per_unit": 100}
# another value of every field of the spec
CHANGES: dict[str, object] = {
    "embedder": "open_clip",
    "tower": "0" * 64,
    "architecture": "ViT-B-32",
    "weights_sha256": "0" * 64,
    "precision": "bfloat16",
    "feature": "image_text_mean",
    "caption_column": "text",
    "image_size": 33,
    "batch_rows": 255,
    "max_pixels": 63_999_999,
    "decode": "fast",
    "rows_per_unit": 101,
    "image_column": "png",
    "key_column": "png_name",
}
SETTABLE = {"image_size", "batch_rows", "max_pixels", "decode", "image_column", "key_column", "caption_column"}


class World:
    """Shards, and a root where the embed stage is committed without embedding anything."""

    def __init__(self, folder: Path) -> None:
        self.root, self.data, self.folder = folder / "root", folder / "data", folder

    def compose(self) -> "World":
        """Write the shards."""
        self.data.mkdir(parents=True)
        for shard in range(SHARDS):
            self.write(shard, seed=0)
        return self

    def write(self, shard: int, *, seed: int) -> None:
        """One shard; what its images show matters to nobody here."""
        images = pa.array([b"%d %d %d" % (shard, seed, row) for row in range(ROWS)])
        pq.write_table(pa.table({"png": images}), self.data / f"{shard:05d}.parquet", row_group_size=100)

    def run(self, **settings: object) -> Run:
        overrides = {**SETTINGS, **{f"embed.{key}": value for key, value in settings.items()}}
        return open_run(Request(root=str(self.root), data=str(self.data), overrides=overrides))

    def plan(self, run: Run) -> StagePlan:
        work = embed_work(run, {})
        return StageFolder(run.files, work.spec).plan(work.inputs, work.units)

    def pending(self, **settings: object) -> int:
        return len(self.plan(self.run(**settings)).pending)

    def embed(self, run: Run) -> None:
        """Commit every pending unit, and seal."""
        work = embed_work(run, {})
        folder = StageFolder(run.files, work.spec)
        folder.open()
        plan = folder.plan(work.inputs, work.units)
        for task in plan.pending:
            part = folder.put(task.unit[:12], ".arrow", task.unit.encode(), rows=1, usable=1, counts={"ok": 1})
            folder.commit(task, [part])
        folder.seal(work.inputs, folder.receipts(work.units), attempt=plan.attempt)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a world whose shards are all embedded."""
    world = World(tmp_path_factory.mktemp("embedded") / "world").compose()
    world.embed(world.run())
    return world.folder


@pytest.fixture
def world(embedded: Path, tmp_path: Path) -> World:
    """A copy of its own, which moved: that changes nothing."""
    shutil.copytree(embedded, tmp_path / "world")
    return World(tmp_path / "world")


def codebook_with_one_byte_changed() -> bytes:
    """The packaged codebook, with the lowest bit of the first number of its whitening turned."""
    weights = bytearray(find_weights(EmbedSpec(), ""))
    header_bytes = int.from_bytes(weights[:8], "little")
    first, last = json.loads(weights[8 : 8 + header_bytes])["whitening_KD"]["data_offsets"]
    assert last - first == 500 * 128 * 4
    weights[8 + header_bytes + first] ^= 1
    return bytes(weights)


def test_a_world_as_it_was_has_nothing_to_do(world: World) -> None:
    plan = world.plan(world.run())
    assert (plan.state, plan.pending) == ("hit", ())


def test_one_byte_of_weights_makes_all_units_anew(world: World) -> None:
    book = world.folder / "book.safetensors"
    book.write_bytes(find_weights(EmbedSpec(), ""))
    assert world.pending(pretrained=str(book)) == 0
    book.write_bytes(codebook_with_one_byte_changed())
    assert world.pending(pretrained=str(book)) == UNITS


def test_the_changes_cover_every_field_of_the_spec() -> None:
    assert set(CHANGES) == set(EmbedSpec.model_fields)


@pytest.mark.parametrize("field", CHANGES)
def test_one_field_of_the_spec_makes_all_units_anew(world: World, field: str) -> None:
    run = world.run()
    work = embed_work(run, {})
    assert getattr(work.spec, field) != CHANGES[field]
    folder = StageFolder(run.files, work.spec.model_copy(update={field: CHANGES[field]}))
    assert len(folder.plan(work.inputs, work.units).pending) == UNITS


@pytest.mark.parametrize("field", sorted(SETTABLE))
def test_one_setting_makes_all_units_anew(world: World, field: str) -> None:
    assert world.pending(**{field: CHANGES[field]}) == UNITS


def test_other_cuts_make_all_units_anew(world: World) -> None:
    assert world.pending(rows_per_unit=200) == 2 * SHARDS
    assert world.pending(rows_per_unit=10_000) == SHARDS


def test_workers_threads_and_device_make_nothing_anew(world: World) -> None:
    assert world.pending(workers=7, threads=3, device="cpu", max_bad_share=0.5) == 0


def test_a_changed_shard_makes_its_own_units_anew(world: World) -> None:
    world.write(2, seed=1)
    assert world.pending() == UNITS // SHARDS


def test_one_shard_more_makes_its_own_units_anew(world: World) -> None:
    world.write(SHARDS, seed=0)
    assert world.pending() == UNITS // SHARDS


@pytest.mark.parametrize("change", ["changed", "added"])
def test_with_whole_shards_as_units_one_shard_is_one_unit(tmp_path: Path, change: str) -> None:
    world = World(tmp_path / "world").compose()
    world.embed(world.run(rows_per_unit=10_000))
    world.write(2 if change == "changed" else SHARDS, seed=1)
    assert world.pending(rows_per_unit=10_000) == 1


def test_a_shard_less_or_renamed_makes_nothing_anew_and_the_input_another(world: World) -> None:
    before = embed_work(world.run(), {}).inputs
    (world.data / "00003.parquet").rename(world.data / "99999.parquet")
    assert embed_work(world.run(), {}).inputs == before
    (world.data / "99999.parquet").unlink()
    plan = world.plan(world.run())
    assert (plan.state, len(plan.pending), len(plan.done)) == ("partial", 0, UNITS - UNITS // SHARDS)
    assert embed_work(world.run(), {}).inputs != before


def test_going_back_finds_what_was_made_before(world: World) -> None:
    world.write(2, seed=1)
    world.embed(world.run())
    world.write(2, seed=0)
    assert world.plan(world.run()).state == "hit"
