"""Rounds: the tower of a round embeds for the next, named by a digest; what cannot be meant is refused at once."""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image

from mlcd_core.dataset import spans_of
from mlcd_core.errors import ConfigError, CorruptRecordError
from mlcd_core.identity import fingerprint
from mlcd_core.images.digit_scenes import scene_parquet_bytes
from mlcd_core.images.embed_shard import read_ipc
from mlcd_core.specs import STAGES
from mlcd_core.store import Manifest, StageFolder, read_part
from mlcd_core.train.model import build_tower
from tasks import sealed
from tasks.embed import resolved_embed_spec
from tasks.embed_worker import UnitEmbedder, reads_of
from tasks.rounds import check_rounds, next_round, plan_rounds
from tasks.run import Request, Run, open_run
from tasks.run_rounds import Round, rounds_summary
from tasks.stage import Manner, StageOutcome
from tasks.work import settings, stage_work

ROWS = 12
SETTINGS = {"cluster.num_centroids": 3, "label.num_labels": 2, "train.num_positive": 1}


class World:
    """One shard of scenes, and a root where a round is committed by hand, its tower with weights of seed 5."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.shard = folder / "train.parquet"
        self.shard.write_bytes(scene_parquet_bytes("train", 0, ROWS, 0))
        self.tower = build_tower("conv-tiny", image_size=32, seed=5)

    def request(self, **overrides: object) -> Request:
        given = {key.replace("__", "."): value for key, value in overrides.items()}
        return Request(root=str(self.root), data=str(self.shard), overrides={**SETTINGS, **given})

    def commit_round(self, run: Run) -> dict[str, Manifest]:
        committed: dict[str, Manifest] = {}
        for stage in ("embed", "cluster", "label", "train"):
            committed[stage] = self.commit(run, stage, committed)
        return committed

    def commit(self, run: Run, stage: str, committed: Mapping[str, Manifest]) -> Manifest:
        work = stage_work(stage, run, committed)
        folder = StageFolder(run.files, work.spec)
        folder.open()
        [task] = folder.plan(work.inputs, work.units or [fingerprint(work.inputs)]).pending
        files = {stage: f"{stage} of {run.request.name}".encode()}
        if stage == "train":
            averaged = build_tower("conv-tiny", image_size=32, seed=6)
            files = {"tower": saved(self.tower), "tower-ema": saved(averaged)}
        parts = [folder.put(name, ".bin", data, rows=ROWS, usable=ROWS) for name, data in files.items()]
        metrics = {"num_centroids": SETTINGS["cluster.num_centroids"]}
        return folder.seal(work.inputs, [folder.commit(task, parts)], attempt=1, metrics=metrics)


def saved(tower: torch.nn.Module) -> bytes:
    return safetensors.torch.save(tower.state_dict())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def trained(world: World) -> Manifest:
    """The train manifest of round 1."""
    return world.commit_round(open_run(world.request()))["train"]


def embedded(run: Run) -> np.ndarray:
    """What a worker of the embed stage commits for the only shard."""
    work = stage_work("embed", run, {})
    folder = StageFolder(run.files, work.spec)
    folder.open()
    [task] = folder.plan(work.inputs, work.units).pending
    _, runtime = settings(run, "embed")
    spec = resolved_embed_spec(run)
    [span] = spans_of(run.shards, spec.rows_per_unit)
    UnitEmbedder(run.files.uri(""), spec, runtime)(task, reads_of(span))
    [receipt] = folder.receipts(work.units)
    column = read_ipc(read_part(run.files, receipt.parts[0]))["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def unit_features(tower: torch.nn.Module, shard: Path) -> np.ndarray:
    """By Pillow and the tower alone; scenes have the tower's size already."""
    table = pq.read_table(shard)
    [column] = {"jpg", "png", "webp"} & set(table.column_names)
    pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in table[column].to_pylist()]
    with torch.no_grad():
        features_BD = tower(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)).numpy()
    return features_BD / np.linalg.norm(features_BD, axis=1, keepdims=True)


@pytest.mark.parametrize("digits", [12, 30, 64])
def test_a_digest_embeds_with_the_trained_weights_of_that_manifest(
    world: World, trained: Manifest, digits: int
) -> None:
    run = open_run(world.request(embed__embedder="tower", embed__tower=trained.digest[:digits]))
    spec = resolved_embed_spec(run)
    assert (spec.tower, spec.architecture, spec.weights_sha256) == (
        trained.digest,
        "conv-tiny",
        trained.parts[0].sha256,
    )
    np.testing.assert_allclose(embedded(run), unit_features(world.tower, world.shard), atol=2e-3)


def test_a_tower_that_was_averaged_embeds_with_its_average(world: World) -> None:
    run = open_run(world.request(train__ema_decay=0.9))
    trained = world.commit_round(run)["train"]
    averaged = build_tower("conv-tiny", image_size=32, seed=6)
    embeddings_ND = embedded(next_round(run.request, 2, run, trained))
    np.testing.assert_allclose(embeddings_ND, unit_features(averaged, world.shard), atol=2e-3)


def test_the_next_round_takes_the_tower_and_nothing_of_the_embedder_before(world: World, trained: Manifest) -> None:
    first = world.request(
        embed__architecture="ViT-B-32",
        embed__pretrained="weights.pt",
        embed__image_size=224,
        embed__feature="image_text_mean",
    )
    before = open_run(world.request())
    second = next_round(first, 2, before, trained)
    third = next_round(first, 3, second, trained)
    assert (second.request.name, third.request.name) == ("default-round2", "default-round3")
    embed = second.config.embed
    assert (embed.architecture, embed.image_size, embed.feature) == ("conv-tiny", 32, "image")
    for stage in ("cluster", "label", "train", "evaluate"):
        assert settings(second, stage) == settings(before, stage)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"embed__tower": ""}, r"embed.tower is ''; expected 12 to 64 hex digits.*there are {train}"),
        ({"embed__tower": "default"}, r"embed.tower is 'default'; expected 12 to 64"),
        ({"embed__tower": "abcabcabcabc"}, r"names nothing that is committed under .*there are {train}"),
        ({"embed__tower": "{label}"}, r"is the digest of a committed label under .*expected one of train"),
        ({"embed__image_size": 64}, r"embed.image_size is 64, .*conv-tiny\) has 32: set embed.image_size=32"),
        ({"embed__architecture": "ViT-B-32"}, r"embed.architecture is ViT-B-32, .*set embed.architecture=$"),
        ({"embed__pretrained": "other.pt"}, r"embed.pretrained is other.pt, .*set embed.pretrained=$"),
        ({"embed__weights_sha256": "f" * 64}, r"embed.weights_sha256 is f+, .*set embed.weights_sha256=$"),
        ({"embed__embedder": "hog_words"}, r"embed.embedder is hog_words, which reads no tower"),
    ],
)
def test_a_tower_that_cannot_be_meant_says_what_to_do(world: World, overrides: dict[str, object], said: str) -> None:
    committed = world.commit_round(open_run(world.request()))
    digests = {stage: manifest.digest[:12] for stage, manifest in committed.items()}
    given = {"embed__embedder": "tower", "embed__tower": digests["train"], **overrides}
    given = {key: value.format(**digests) if isinstance(value, str) else value for key, value in given.items()}
    with pytest.raises(ConfigError, match=said.replace("{train}", digests["train"])):
        open_run(world.request(**given))


def test_a_root_without_a_trained_tower_says_so(world: World) -> None:
    with pytest.raises(ConfigError, match="there is none: run train first"):
        open_run(world.request(embed__embedder="tower", embed__tower="abcabcabcabc"))


def test_a_digest_that_two_manifests_begin_with_is_ambiguous(
    world: World, trained: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = replace(trained, digest=trained.digest[:12] + "0" * 52)  # nobody can make one, so it is made up
    monkeypatch.setattr(sealed, "sealed_manifests", lambda files, stage: [trained, twin])
    with pytest.raises(ConfigError, match=r"is the start of .*give all 64 digits"):
        open_run(world.request(embed__embedder="tower", embed__tower=trained.digest[:12]))


def test_lost_weights_are_refused(world: World, trained: Manifest) -> None:
    (world.root / trained.parts[0].path).unlink()
    with pytest.raises(CorruptRecordError, match="has no bytes"):
        open_run(world.request(embed__embedder="tower", embed__tower=trained.digest))


def test_plan_shows_a_round_as_waiting_until_the_tower_before_it_is_trained(world: World) -> None:
    waiting = plan_rounds(world.request(), STAGES, 3)["stages"]
    assert [(stage["round"], stage["plan"]) for stage in waiting] == [(1, "miss"), *[(1, "waits")] * 4] + [
        (number, "waits") for number in (2, 3) for _ in range(5)
    ]
    assert {stage["note"] for stage in waiting[5:10]} == {"waits for train of round 1"}
    assert {stage["note"] for stage in waiting[10:]} == {"waits for train of round 2"}

    run = open_run(world.request())
    trained = world.commit_round(run)["train"]
    known = plan_rounds(world.request(), STAGES, 3)["stages"]
    assert [stage["plan"] for stage in known] == [*["hit"] * 4, "miss", "miss", *["waits"] * 9]
    second = next_round(run.request, 2, run, trained)
    assert known[5]["spec"] == StageFolder(run.files, resolved_embed_spec(second)).fingerprint

    world.commit_round(second)
    assert [stage["plan"] for stage in plan_rounds(world.request(), STAGES, 2)["stages"][5:]] == [*["hit"] * 4, "miss"]


def test_a_plan_forces_and_selects_as_the_run_would(world: World) -> None:
    world.commit_round(open_run(world.request()))
    forced = plan_rounds(world.request(), STAGES, 2, Manner(force=frozenset({"label"})))["stages"]
    assert [stage["plan"] for stage in forced] == ["hit", "hit", "miss", "waits", "waits", *["waits"] * 5]
    assert forced[2]["note"] == "is made again, as forced"
    some = plan_rounds(world.request(), ["cluster", "label"], 1, Manner(force=frozenset({"label"})))["stages"]
    assert [(stage["stage"], stage["plan"]) for stage in some] == [("cluster", "hit"), ("label", "miss")]
    with pytest.raises(ConfigError, match="label is forced, but only cluster would run"):
        plan_rounds(world.request(), ["cluster"], 1, Manner(force=frozenset({"label"})))
    # nothing was begun by looking
    assert not [path for path in world.root.rglob("*") if "forced" in path.parts]


def test_one_round_is_planned_as_before(world: World) -> None:
    [embed, *_] = plan_rounds(world.request(), STAGES, 1)["stages"]
    assert (embed["stage"], embed["round"], embed["plan"]) == ("embed", 1, "miss")


def test_rounds_that_cannot_be_meant_are_refused(world: World) -> None:
    request = world.request()
    with pytest.raises(ConfigError, match="rounds is 0; expected 1 or more"):
        check_rounds(request, ["train"], 0)
    for selected in (["embed", "cluster"], ["train"], ["cluster", "label", "train", "evaluate"]):
        with pytest.raises(ConfigError, match=rf"but only {', '.join(selected)} would run; .*all stages up to train"):
            check_rounds(request, selected, 2)
    until_train = ["embed", "cluster", "label", "train"]
    with pytest.raises(ConfigError, match="leave the pin or the rounds out"):
        check_rounds(replace(request, pin={"cluster": "default"}), until_train, 2)
    check_rounds(request, ["embed"], 1)
    check_rounds(request, until_train, 2)


def test_the_summary_has_the_stages_of_all_rounds_and_the_metrics_of_the_last() -> None:
    def outcome(accuracy: float) -> StageOutcome:
        metrics = {"scores": {"trained": {"knn": accuracy}}, "clusters": {"purity": accuracy}, "test_rows": 1}
        return StageOutcome("evaluate", "ran", Manifest("evaluate", "s", "i", {}, 1, "d", 0, 0, (), metrics))

    embed = StageOutcome("embed", "cached")
    summary = rounds_summary([Round(1, "a", [embed, outcome(0.25)]), Round(2, "a-round2", [embed, outcome(0.5)])])
    assert [(stage["round"], stage["stage"]) for stage in summary["stages"]] == [
        (1, "embed"),
        (1, "evaluate"),
        (2, "embed"),
        (2, "evaluate"),
    ]
    assert (summary["metrics"], summary["clusters"]) == ({"trained": {"knn": 0.5}}, {"purity": 0.5})
    assert [(done["round"], done["name"], done["metrics"]) for done in summary["rounds"]] == [
        (1, "a", {"trained": {"knn": 0.25}}),
        (2, "a-round2", {"trained": {"knn": 0.5}}),
    ]
