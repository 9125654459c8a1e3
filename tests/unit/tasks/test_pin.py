"""A pinned stage: new shards get labels of old centroids, nothing is clustered, and what does not fit is refused."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import mlcd_core
from mlcd_core.config import load_config
from mlcd_core.errors import ConfigError, CorruptRecordError
from mlcd_core.images.embed_shard import embedding_table, ipc_bytes
from mlcd_core.kmeans import CentroidState
from mlcd_core.specs import EmbedSpec
from mlcd_core.store import Manifest, StageFolder
from tasks import label
from tasks.pin import resolve_pins
from tasks.planning import plan_stages, run_status
from tasks.run import Request, Run, open_run
from tasks.run_record import RunRecord
from tasks.run_stages import _needed, _pinned
from tasks.work import stage_work

ROWS, DIM, NUM_CENTROIDS = 9, 5, 4
SETTINGS = {"label.num_labels": 3, "train.num_positive": 2}


class World:
    """A root and a folder of shards; embed and cluster are committed by hand, label by its own worker."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.data = folder / "data"
        self.data.mkdir()

    def add_shard(self, number: int) -> None:
        pq.write_table(
            pa.table({"jpg": [bytes([number, row]) for row in range(ROWS)]}), self.data / f"{number}.parquet"
        )

    def run(self, name: str = "default", pin: dict[str, str] | None = None, **settings: object) -> Run:
        overrides = {**SETTINGS, **{key.replace("__", "."): value for key, value in settings.items()}}
        data = str(self.data)
        return open_run(Request(root=str(self.root), name=name, data=data, overrides=overrides, pin=pin or {}))

    def embed(self, run: Run) -> Manifest:
        work = stage_work("embed", run, {})
        folder = StageFolder(run.files, work.spec)
        plan = folder.plan(work.inputs, work.units)
        folder.open()
        for task in plan.pending:
            random = np.random.default_rng(int(task.unit[:8], 16))
            rows_ND = unit_rows(random.standard_normal((ROWS, DIM)))
            keys = [str(row) for row in range(ROWS)]
            table = embedding_table(np.arange(ROWS), keys, np.zeros(ROWS, np.int8), rows_ND.astype(np.float16))
            folder.commit(task, [folder.put("part", ".arrow", ipc_bytes(table), rows=ROWS, usable=ROWS)])
        return self.seal(run, "embed", {}, folder)

    def cluster(self, run: Run, embed: Manifest, seed: int = 0) -> Manifest:
        work = stage_work("cluster", run, {"embed": embed})
        folder = StageFolder(run.files, work.spec)
        folder.open()
        random = np.random.default_rng(seed)
        centroids_KD = np.round(unit_rows(random.standard_normal((NUM_CENTROIDS, DIM))) * 2**24) / 2**24
        state = CentroidState.start(torch.from_numpy(centroids_KD.astype(np.float32)), embed.usable)
        part = folder.put("centroids", ".arrow", state.to_arrow_bytes(), rows=NUM_CENTROIDS, usable=NUM_CENTROIDS)
        [task] = folder.plan(work.inputs, ["1" * 64]).pending
        manifest = folder.seal(work.inputs, [folder.commit(task, [part])], attempt=1)
        RunRecord(run.files, run.request.name).note("cluster", folder.fingerprint, work, manifest)
        return manifest

    def label(self, run: Run, embed: Manifest, cluster: Manifest) -> tuple[int, Manifest]:
        """The units that were run, and the manifest."""
        work = stage_work("label", run, {"embed": embed, "cluster": cluster})
        folder = StageFolder(run.files, work.spec)
        pending = folder.plan(work.inputs, work.units).pending
        folder.open()
        _, runtime = label.settings(run, "label")
        labeler = label.UnitLabeler(str(self.root), work.spec, runtime, cluster.parts[0])
        for task in pending:
            labeler(task, vars(embed.parts[task.index]))
        return len(pending), self.seal(run, "label", {"embed": embed, "cluster": cluster}, folder)

    def seal(self, run: Run, stage: str, committed: dict[str, Manifest], folder: StageFolder) -> Manifest:
        work = stage_work(stage, run, committed)
        manifest = folder.seal(work.inputs, folder.receipts(work.units), attempt=1, expected_rows=work.expected_rows)
        RunRecord(run.files, run.request.name).note(stage, folder.fingerprint, work, manifest)
        return manifest


def unit_rows(rows_ND: np.ndarray) -> np.ndarray:
    return rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    column = column.combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two shards, embedded and clustered by the run ``default``."""
    world = World(tmp_path)
    for number in (0, 1):
        world.add_shard(number)
    run = world.run(cluster__num_centroids=NUM_CENTROIDS)
    world.cluster(run, world.embed(run))
    return world


def test_new_shards_are_labelled_with_the_pinned_centroids_and_nothing_else_runs(world: World) -> None:
    old = world.run(cluster__num_centroids=NUM_CENTROIDS)
    cluster = resolve_pins(world.run(pin={"cluster": "default"}))["cluster"].manifest
    _, old_labels = world.label(old, world.embed(old), cluster)
    world.add_shard(2)
    grown = world.run("grown", pin={"cluster": "default"})
    plans = {
        entry["stage"]: (entry["plan"], entry["units_missing"]) for entry in plan_stages(grown, resolve_pins(grown))
    }
    assert plans["embed"] == ("partial", 1)
    assert plans["cluster"] == ("hit", 0)

    embed = world.embed(grown)
    _pinned("cluster", grown, resolve_pins(grown)["cluster"])
    units_run, labels = world.label(grown, embed, resolve_pins(grown)["cluster"].manifest)
    assert units_run == 1
    assert [part.path for part in labels.parts[:2]] == [part.path for part in old_labels.parts]
    assert labels.parts[:2] == old_labels.parts

    opened = mlcd_core.open_run(world.root, "grown")
    cosines_NK = matrix(opened.embeddings()["embedding"]).astype(np.float64) @ matrix(opened.centroids()["vector"]).T
    np.testing.assert_array_equal(
        matrix(opened.labels()["labels"]), np.argsort(-cosines_NK, axis=1, kind="stable")[:, :3]
    )


@pytest.mark.parametrize("digits", [12, 64])
def test_a_digest_pins_the_same_manifest_as_the_run(world: World, digits: int) -> None:
    by_run = resolve_pins(world.run(pin={"cluster": "default"}))["cluster"].manifest
    assert resolve_pins(world.run(pin={"cluster": by_run.digest[:digits]}))["cluster"].manifest == by_run


def test_status_and_record_show_the_pin_and_it_can_be_pinned_again(world: World) -> None:
    run = world.run("grown", pin={"cluster": "default"})
    outcome = _pinned("cluster", run, resolve_pins(run)["cluster"])
    assert (outcome.result, outcome.record()["units_run"]) == ("cached", 0)
    assert "pinned to default" in outcome.record()["note"]
    [cluster] = [entry for entry in run_status(str(world.root), "grown") if entry["stage"] == "cluster"]
    assert (cluster["state"], cluster["pin"], cluster["manifest_digest"]) == (
        "committed",
        "default",
        outcome.manifest.digest,
    )
    assert resolve_pins(world.run("more", pin={"cluster": "grown"}))["cluster"].manifest == outcome.manifest


def test_keys_of_the_pinned_stage_are_ignored_with_a_warning(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLCD_CLUSTER__SEED", "3")
    run = world.run(pin={"cluster": "default"}, cluster__num_centroids=2, cluster__iterations=7)
    pinned = resolve_pins(run)["cluster"]
    assert pinned.manifest.parts[0].rows == NUM_CENTROIDS
    with caplog.at_level(logging.WARNING):
        _pinned("cluster", run, pinned)
    [line] = caplog.messages
    assert line.startswith("cluster is pinned to default (")
    assert line.endswith("ignored: cluster.iterations, cluster.num_centroids, cluster.seed")


def test_unknown_names_list_what_there_is(world: World) -> None:
    digest = resolve_pins(world.run(pin={"cluster": "default"}))["cluster"].manifest.digest
    for source in ("defualt", "0" * 12, digest[:11]):
        with pytest.raises(ConfigError, match=rf"{source} names no committed cluster .*default \({digest[:12]}\)"):
            resolve_pins(world.run(pin={"cluster": source}))


def test_a_run_that_has_not_clustered_yet_cannot_be_pinned(world: World) -> None:
    run = world.run("young", cluster__num_centroids=3)
    world.embed(run)
    with pytest.raises(ConfigError, match="the run 'young' has not committed cluster yet"):
        resolve_pins(world.run(pin={"cluster": "young"}))


def test_a_digest_that_two_manifests_begin_with_is_ambiguous(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import pin

    [manifest] = pin.sealed_manifests(world.run().files, "cluster")
    twin = replace(manifest, digest=manifest.digest[:12] + "0" * 52)  # nobody can make one, so it is made up
    monkeypatch.setattr(pin, "sealed_manifests", lambda files, stage: [manifest, twin])
    with pytest.raises(ConfigError, match=r"is the start of .*give all 64 digits"):
        resolve_pins(world.run(pin={"cluster": manifest.digest[:12]}))


def test_centroids_of_another_embedder_are_refused(world: World) -> None:
    with pytest.raises(ConfigError, match=r"another embedder; this run has embed\.image_size 64, expected 32"):
        resolve_pins(world.run(pin={"cluster": "default"}, embed__image_size=64))


def test_centroids_of_another_version_of_the_embedder_are_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmbedSpec, "STAGE_VERSION", EmbedSpec.STAGE_VERSION + 1)
    with pytest.raises(ConfigError, match=r"this run has embed\.stage_version 2, expected 1"):
        resolve_pins(world.run(pin={"cluster": "default"}))


def test_another_way_to_read_rows_is_the_same_embedder(world: World) -> None:
    assert "cluster" in resolve_pins(world.run(pin={"cluster": "default"}, embed__batch_rows=7, embed__key_column="id"))


def test_centroids_whose_embeddings_are_gone_are_refused(world: World) -> None:
    [manifest] = (world.root / "embed").glob("*/manifests/*.json")
    manifest.unlink()
    with pytest.raises(ConfigError, match=r"no longer under .*which embedder"):
        resolve_pins(world.run(pin={"cluster": "default"}))


def test_lost_centroids_are_refused(world: World) -> None:
    [part] = (world.root / "cluster").glob("*/data/*")
    part.unlink()
    with pytest.raises(CorruptRecordError, match="has no bytes"):
        resolve_pins(world.run(pin={"cluster": "default"}))


def test_more_labels_than_pinned_centroids_are_refused(world: World) -> None:
    with pytest.raises(ConfigError, match=r"set label.num_labels <= 4"):
        resolve_pins(world.run(pin={"cluster": "default"}, label__num_labels=5))


@pytest.mark.parametrize("pin", [{"embed": "default"}, {"clusters": "default"}, {"cluster": ""}])
def test_only_cluster_can_be_pinned(world: World, pin: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="expected cluster=RUN_OR_DIGEST"):
        world.run(pin=pin)


def test_what_only_a_pinned_stage_reads_is_not_needed() -> None:
    assert _needed("embed", ["cluster"], {})
    assert not _needed("embed", ["cluster"], {"cluster": None})
    assert _needed("embed", ["label"], {"cluster": None})


def test_a_preset_with_more_centroids_than_pinned_ones_does_not_count() -> None:
    config = load_config("laptop", environment={}, overrides={"cluster.num_centroids": None, "label.num_labels": 300})
    assert config.cluster.num_centroids is None
