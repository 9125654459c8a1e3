"""Two rounds of the pipeline flow: the second embeds with the tower of the first, and both are cached afterwards.

The flow runs in this process, so that all its rounds share one Ray session.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

import mlcd_core
from flows.pipeline import pipeline
from tasks.ray_session import RaySession
from tests.integration.harness import TINY, write_scenes

STAGES = ["embed", "cluster", "label", "train", "evaluate"]
Summary = dict[str, Any]
# Ray and Prefect warn of themselves in this process
pytestmark = pytest.mark.filterwarnings("default")


class World:
    """A root that two rounds are run in."""

    def __init__(self, folder: Path) -> None:
        self.data, self.root = folder / "data", folder / "root"
        write_scenes(self.data, "train", shards=2)
        write_scenes(self.data, "test", shards=1)
        self.first = self.run()

    def run(self) -> Summary:
        workers = {f"{stage}.workers": 1 for stage in STAGES[:4]}
        state = pipeline(
            root=str(self.root),
            data=f"{self.data}/train-*",
            eval_data=f"{self.data}/test-*",
            label_column="labels",
            rounds=2,
            overrides={**TINY, **workers, "train.epochs": 1, "cluster.num_centroids": 8},
            return_state=True,
        )
        assert state.is_completed(), state.message
        return state.result()

    def keys(self, split: str) -> list[str]:
        return [key for path in sorted(self.data.glob(f"{split}-*")) for key in pq.read_table(path)["key"].to_pylist()]

    def listing(self) -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in sorted(self.root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Iterator[World]:
    with temporary_settings({PREFECT_API_URL: prefect_server}), RaySession(most_workers=1) as session:
        session.start()
        yield World(tmp_path_factory.mktemp("rounds"))


def by_round(done: Summary, field: str) -> list[tuple[int, str, Any]]:
    return [(stage["round"], stage["stage"], stage[field]) for stage in done["stages"]]


def test_the_second_round_reads_the_tower_of_the_first(world: World) -> None:
    assert by_round(world.first, "result") == [(number, stage, "ran") for number in (1, 2) for stage in STAGES]
    first, second = mlcd_core.open_run(world.root), mlcd_core.open_run(world.root, "default-round2")
    embed = second.manifest("embed")
    [spec] = [path.read_text() for path in (world.root / "embed").glob("*/spec.json") if embed.spec[:12] in str(path)]
    assert first.manifest("train").digest in spec
    assert second.embeddings()["embedding"].type.list_size == 64
    assert second.manifest("train").digest != first.manifest("train").digest


def test_metrics_are_those_of_the_last_round_and_of_each(world: World) -> None:
    summary = world.first
    first, second = summary["rounds"]
    assert (first["round"], first["name"], second["round"], second["name"]) == (1, "default", 2, "default-round2")
    assert summary["metrics"] == second["metrics"]
    assert summary["clusters"] == second["clusters"]
    # the tower that round 1 has trained and the source of round 2 are one and the same, up to float16 of train rows
    for measure, score in first["metrics"]["trained"].items():
        assert score is None or abs(second["metrics"]["source"][measure] - score) < 0.05


def test_no_test_row_enters_a_round(world: World) -> None:
    for name in ("default", "default-round2"):
        run = mlcd_core.open_run(world.root, name)
        assert run.embeddings()["key"].to_pylist() == world.keys("train")
        assert run.labels()["key"].to_pylist() == world.keys("train")
        assert run.manifest("train").inputs["label"] == run.manifest("label").digest
        assert run.manifest("cluster").inputs["embed"] == run.manifest("embed").digest
    assert not set(world.keys("train")) & set(world.keys("test"))


def test_labels_of_the_second_round_are_of_its_own_centroids(world: World) -> None:
    run = mlcd_core.open_run(world.root, "default-round2")
    cosines_NK = matrix(run.embeddings()["embedding"]).astype(np.float64) @ matrix(run.centroids()["vector"]).T
    best_NL = np.argsort(-cosines_NK, axis=1, kind="stable")[:, :6]
    np.testing.assert_array_equal(matrix(run.labels()["labels"]), best_NL)


def test_the_same_command_again_is_cached_in_both_rounds_and_changes_no_file(world: World) -> None:
    before = world.listing()
    again = world.run()
    assert by_round(again, "result") == [(number, stage, "cached") for number in (1, 2) for stage in STAGES]
    assert by_round(again, "manifest_digest") == by_round(world.first, "manifest_digest")
    assert again["metrics"] == world.first["metrics"]
    assert world.listing() == before


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    column = column.combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
