"""What the train stage reads, and what it says of it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlcd_core.errors import ConfigError, TrainingError
from mlcd_core.identity import sha256_hex
from mlcd_core.specs import ClusterSpec, LabelSpec, StageSpec, TrainSpec
from mlcd_core.store import LocalFiles, Manifest, StageFolder, UnitTask
from tasks.artifacts import stage_markdown
from tasks.planning import plan_run
from tasks.ray_session import RaySession
from tasks.run import Request, Run, open_run
from tasks.run_stages import run_stages
from tasks.train import check_train, log_folder
from tasks.train_start import start_of, start_parts
from tasks.work import stage_work


def commit(
    root: Path, spec: StageSpec, content: bytes, inputs: dict[str, str] | None = None, **metrics: Any
) -> Manifest:
    """A stage with one part."""
    folder = StageFolder(LocalFiles(root), spec)
    folder.open()
    part = folder.put("part", ".bin", content, rows=90, usable=90)
    receipt = folder.commit(UnitTask(0, sha256_hex(content), 1), [part])
    ran_on = {"device": "cpu", "threads": 1}
    notes = {"ran_on": [{**ran_on, "world_size": 2, "to_step": 40}, {**ran_on, "world_size": 1, "to_step": 90}]}
    return folder.seal(inputs or {"data": "d" * 64}, [receipt], attempt=1, metrics=metrics, notes=notes)


@pytest.fixture
def upstream(tmp_path: Path) -> dict[str, Manifest]:
    pq.write_table(pa.table({"jpg": [b"1"] * 90}), tmp_path / "data.parquet")
    return {
        "cluster": commit(tmp_path / "root", ClusterSpec(), b"centroids"),
        "label": commit(tmp_path / "root", LabelSpec(), b"labels", {"cluster": "c" * 64}, num_centroids=10),
    }


def run_with(folder: Path, **settings: object) -> Run:
    overrides = {f"train.{key}": value for key, value in settings.items()}
    return open_run(Request(root=str(folder / "root"), data=str(folder / "data.parquet"), overrides=overrides))


def test_random_beginnings_read_data_and_labels_alone(upstream: dict[str, Manifest], tmp_path: Path) -> None:
    work = stage_work("train", run_with(tmp_path), upstream)
    assert (set(work.inputs), work.note) == ({"data", "label"}, "")


@pytest.mark.parametrize("center_init", ["centroids", "centroids_pca"])
def test_centers_that_begin_as_centroids_make_the_clustering_an_input(
    center_init: str, upstream: dict[str, Manifest], tmp_path: Path
) -> None:
    work = stage_work("train", run_with(tmp_path, center_init=center_init), upstream)
    assert work.inputs["cluster"] == upstream["cluster"].digest
    assert upstream["cluster"].digest[:12] in work.note


def test_a_start_is_an_input_and_the_same_address_however_its_digest_is_spelled(
    upstream: dict[str, Manifest], tmp_path: Path
) -> None:
    start = commit(tmp_path / "root", TrainSpec(), b"weights")
    works = [
        stage_work("train", run_with(tmp_path, start_from=start.digest[:length], image_size=64), upstream)
        for length in (12, 64)
    ]
    assert works[0].spec == works[1].spec
    assert works[0].inputs == works[1].inputs == {**works[0].inputs, "start": start.digest}
    assert start.digest[:12] in works[0].note


def test_an_unknown_start_is_refused_before_any_stage_runs(upstream: dict[str, Manifest], tmp_path: Path) -> None:
    known = commit(tmp_path / "root", TrainSpec(), b"weights").digest
    run = run_with(tmp_path, start_from="a" * 12)
    with pytest.raises(ConfigError, match=rf"train\.start_from=a{{12}} names nothing.*{known[:12]}"):
        start_of(run)
    with pytest.raises(ConfigError, match="names nothing"):
        run_stages(run, ["embed", "train"], RaySession(most_workers=1))
    assert not (tmp_path / "root" / "embed").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tower": "conv-tinny"}, "did you mean conv-tiny"),
        ({"tower": "timm:resnet18"}, "has BatchNorm and got 2 ranks"),
        ({"tower": "timm:resnet18", "workers": 1, "accumulation": 2}, r"train\.accumulation=2"),
        (
            {"tower": "open_clip:RN50", "image_size": 64, "workers": 1, "checkpoint_activations": True},
            "cannot recompute",
        ),
        ({"center_init": "centroids"}, r"gives 64 dims while the centroids have \d+"),
        ({"tower": "open_clip:ViT-B-32", "image_size": 64, "center_init": "centroids"}, "gives 512 dims"),
    ],
)
def test_a_tower_that_does_not_fit_is_refused_by_run_and_plan_before_any_stage(
    settings: dict[str, object], said: str, upstream: dict[str, Manifest], tmp_path: Path
) -> None:
    run = run_with(tmp_path, **settings)
    with pytest.raises((ConfigError, TrainingError), match=said):
        run_stages(run, ["embed", "train"], RaySession(most_workers=1))
    with pytest.raises((ConfigError, TrainingError), match=said):
        plan_run(run.request)
    assert not (tmp_path / "root" / "embed").exists()


def test_a_tower_that_fits_is_not_refused(upstream: dict[str, Manifest], tmp_path: Path) -> None:
    check_train(run_with(tmp_path, tower="timm:resnet18", workers=1, center_init="centroids_pca"))
    check_train(run_with(tmp_path, tower="open_clip:ViT-B-32", image_size=64, workers=2, checkpoint_activations=True))


def test_classes_are_the_same_where_the_labels_come_from_one_clustering(
    upstream: dict[str, Manifest], tmp_path: Path
) -> None:
    root, run, ours = tmp_path / "root", run_with(tmp_path), upstream["label"]
    grown = commit(root, LabelSpec(), b"grown", {**ours.inputs, "embed": "e" * 64})
    other = commit(root, LabelSpec(), b"other", {**ours.inputs, "cluster": "f" * 64})
    gone = "a" * 64
    starts = [
        commit(root, TrainSpec(), digest.encode(), {"label": digest})
        for digest in (ours.digest, grown.digest, other.digest, gone)
    ]
    assert [start_parts(run, start, ours).same_classes for start in starts[:3]] == [True, True, False]
    with pytest.raises(ConfigError, match="nobody can tell"):
        start_parts(run, starts[3], ours)


def test_logs_lie_under_the_root_or_where_they_are_wanted(upstream: dict[str, Manifest], tmp_path: Path) -> None:
    spec = TrainSpec()
    name = log_folder(run_with(tmp_path), spec).name
    assert log_folder(run_with(tmp_path), spec) == tmp_path / "root" / "logs" / "train" / name
    elsewhere = run_with(tmp_path, log_folder=str(tmp_path / "elsewhere"))
    assert log_folder(elsewhere, spec) == tmp_path / "elsewhere" / "train" / name
    with pytest.raises(ConfigError, match="absolute path"):
        log_folder(run_with(tmp_path, log_folder="here"), spec)


def test_artifact_shows_curves_watches_and_the_workers_of_each_attempt(tmp_path: Path) -> None:
    record = {"loss": 2.0, "positive_cosine": 0.5, "negative_cosine": 0.0, "effective_rank": 3.0, "images_per_s": 9.5}
    manifest = commit(tmp_path, TrainSpec(), b"", curve=[{"step": 20, **record}, {"step": 40, **record}])
    shown = {"result": "ran", "units_run": 1, "seconds": 1, "uri": "here"}
    text = stage_markdown(shown, manifest)
    assert text.count("data:image/png;base64,") == 5
    assert "| workers to step 40 | 2 on cpu, 1 threads |" in text
    assert "| workers to step 90 | 1 on cpu, 1 threads |" in text
    assert "| last effective_rank | 3 |" in text
