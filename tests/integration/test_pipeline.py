"""The whole pipeline by the real command: Prefect flow, Ray Data, Ray actors, TorchTrainer, on small scenes.

One root serves the module and the tests build on each other in order, since each run that misses costs a Ray session.
"""

import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mlcd_core
from tests.integration.counting_proxy import counted
from tests.integration.harness import (
    Finished,
    Mlcd,
    kill_after_first_receipt,
    tiny_settings,
    wait_for_first_receipt,
    write_id_of,
    write_scenes,
)

REPO = Path(__file__).parents[2]
MOST_CALLS, CACHED_S = 30, 5.0  # of a stage that is committed
STAGES = ["embed", "cluster", "label", "train", "evaluate"]


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    column = column.combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


class World:
    """One data folder and one root, and the command that runs on them."""

    def __init__(self, folder: Path, mlcd: Mlcd) -> None:
        self.data = folder / "data"
        self.root = folder / "root"
        self._mlcd = mlcd

    def run(self, *words: str, api: str = "", **settings: object) -> Finished:
        mlcd = Mlcd(api) if api else self._mlcd
        return mlcd("run", *self.request(), *tiny_settings(**settings), "--json", *words)

    def plan(self, **settings: object) -> dict[str, str]:
        done = self._mlcd("plan", *self.request(), *tiny_settings(**settings), "--json")
        assert done.code == 0, done.stderr
        return {stage["stage"]: stage["plan"] for stage in done.summary["stages"]}

    def status(self) -> dict[str, dict[str, object]]:
        done = self._mlcd("status", "--root", str(self.root), "--json")
        assert done.code == 0, done.stderr
        return {stage["stage"]: stage for stage in done.summary["stages"]}

    def request(self) -> list[str]:
        train, test = self.data / "train-*.parquet", self.data / "test-*.parquet"
        where = ["--root", str(self.root), "--data", str(train), "--eval-data", str(test)]
        return [*where, "--label-column", "labels"]

    def listing(self) -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in sorted(self.root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, mlcd: Mlcd) -> World:
    world = World(tmp_path_factory.mktemp("pipeline"), mlcd)
    write_scenes(world.data, "train", shards=4)
    write_scenes(world.data, "test", shards=1)
    return world


def test_plan_of_a_fresh_root_is_a_miss_and_writes_nothing(world: World) -> None:
    assert world.plan() == {"embed": "miss", **dict.fromkeys(STAGES[1:], "waits")}
    assert not world.root.exists()


def test_a_probe_tells_what_every_stage_costs_and_leaves_nothing(world: World) -> None:
    # few steps: of larger batches, for what a probe trains is a number of images
    settings = tiny_settings(train__batch_size=512)
    done = world._mlcd("plan", *world.request(), *settings, "--probe", "--price", "36", "--json")
    assert done.code == 0, done.stderr
    costs = [stage["cost"] for stage in done.summary["stages"]]
    assert all(cost["bytes"] > 0 and cost["seconds"] > 0 for cost in costs)
    assert [cost["price"] for cost in costs] == [pytest.approx(cost["seconds"] / 100) for cost in costs]
    assert not world.root.exists()


def test_first_run_makes_every_stage(world: World) -> None:
    done = world.run()
    assert done.code == 0, done.stderr
    assert done.results() == dict.fromkeys(STAGES, "ran")
    assert set(done.summary) >= {"stages", "metrics", "report"}
    for scores in done.summary["metrics"].values():
        assert set(scores) == {"knn", "linear_probe", "multilabel_map"}
    assert set(done.summary["metrics"]) == {"trained", "untrained", "source"}
    status = world.status()
    assert {stage: entry["state"] for stage, entry in status.items()} == dict.fromkeys(STAGES, "committed")
    assert status["embed"]["units_total"] == 4
    # the log of the run names the process of every worker
    for who in ("embed worker", "cluster rank", "label worker", "train rank", "evaluate worker"):
        assert re.search(rf"- {who} \d+: process \d+ on ", done.stderr), who


def test_every_input_row_has_one_row_in_order_in_embeddings_and_labels(world: World) -> None:
    source = [row for path in sorted(world.data.glob("train-*")) for row in pq.read_table(path)["key"].to_pylist()]
    run = mlcd_core.open_run(world.root)
    embeddings, labels, centroids = run.embeddings(), run.labels(), run.centroids()
    assert embeddings["key"].to_pylist() == source
    assert labels["key"].to_pylist() == source
    assert embeddings["row"].to_pylist() == list(range(40)) * 4
    assert (len(centroids), labels["labels"].type.list_size) == (12, 6)


def test_labels_are_the_nearest_centroids_of_the_stored_embeddings(world: World) -> None:
    run = mlcd_core.open_run(world.root)
    cosines_NK = matrix(run.embeddings()["embedding"]).astype(np.float64) @ matrix(run.centroids()["vector"]).T
    best_NL = np.argsort(-cosines_NK, axis=1, kind="stable")[:, :6]
    np.testing.assert_array_equal(matrix(run.labels()["labels"]), best_NL)
    chosen_NL = np.take_along_axis(cosines_NK, best_NL, axis=1)
    np.testing.assert_array_equal(matrix(run.labels()["scores"]), chosen_NL.astype(np.float16))


def test_same_command_again_is_cached_changes_no_file_and_asks_prefect_little(world: World, mlcd: Mlcd) -> None:
    before = world.listing()
    with counted(mlcd.api) as count:
        done = world.run(api=count.api)
    assert done.code == 0, done.stderr
    assert 0 < len(count.paths) <= MOST_CALLS * len(STAGES), Counter(count.paths)
    assert max(stage["seconds"] for stage in done.summary["stages"]) < CACHED_S
    assert done.results() == dict.fromkeys(STAGES, "cached")
    assert all(stage["units_run"] == 0 for stage in done.summary["stages"])
    assert world.listing() == before
    assert world.plan() == dict.fromkeys(STAGES, "hit")


def test_the_python_of_the_readme_reads_it(world: World) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(), flags=re.DOTALL)
    exec(code.replace("/data/mlcd", str(world.root)), {})


def test_run_killed_at_a_random_time_ends_with_the_same_digests(world: World, tmp_path: Path, mlcd: Mlcd) -> None:
    """With other worker counts than the first run: 1 for embed and label, 3 for cluster."""
    request = [str(tmp_path) if word == str(world.root) else word for word in world.request()]
    workers = tiny_settings(embed__workers=1, cluster__workers=3, label__workers=1)
    words = ["run", *request, *workers, "--until", "label", "--json"]
    delay_s = random.uniform(0, 4)
    killed = kill_after_first_receipt(words, tmp_path, delay_s, mlcd)
    done = mlcd(*words)
    assert done.code == 0, f"killed {delay_s:.2f} s after the first receipt: {done.stderr}"
    for path, write_id in killed.items():
        assert write_id_of(tmp_path / path) == write_id
    undisturbed = world.status()
    for stage in done.summary["stages"][:3]:
        assert stage["manifest_digest"] == undisturbed[stage["stage"]]["manifest_digest"]


def test_a_training_choice_reruns_only_training(world: World) -> None:
    assert world.plan(train__num_positive=2)["train"] == "miss"
    done = world.run("--until", "train", train__num_positive=2)
    assert done.results() == {
        **dict.fromkeys(STAGES[:3], "cached"),
        "train": "ran",
        "evaluate": "skipped",
    }


def test_one_shard_more_embeds_one_shard(world: World) -> None:
    write_scenes(world.data, "train", shards=1, first=4)
    assert world.plan() == {"embed": "partial", **dict.fromkeys(STAGES[1:], "waits")}
    done = world.run("--until", "label")
    units = {stage["stage"]: stage["units_run"] for stage in done.summary["stages"]}
    assert (units["embed"], units["label"]) == (1, 5)  # new centroids label every part again
    assert len(mlcd_core.open_run(world.root).embeddings()) == 200


def test_new_shards_get_labels_of_pinned_centroids(world: World, tmp_path: Path, mlcd: Mlcd) -> None:
    write_scenes(tmp_path, "train", shards=6)
    old = mlcd_core.open_run(world.root)
    files = world.listing()
    settings = [*tiny_settings(cluster__num_centroids=50), "--name", "grown", "--pin", "cluster=default"]
    done = mlcd("run", "--root", str(world.root), "--data", str(tmp_path), *settings, "--until", "label", "--json")
    assert done.code == 0, done.stderr
    assert "WARNING" in done.stderr
    assert "ignored: cluster.iterations, cluster.num_centroids, cluster.tolerance" in done.stderr
    stages = {stage["stage"]: stage for stage in done.summary["stages"]}
    assert {name: stages[name]["units_run"] for name in STAGES[:3]} == {"embed": 1, "cluster": 0, "label": 1}
    assert (stages["cluster"]["result"], stages["cluster"]["manifest_digest"]) == (
        "cached",
        old.manifest("cluster").digest,
    )
    grown = mlcd_core.open_run(world.root, "grown")
    assert grown.labels()[:200] == old.labels()
    assert grown.manifest("label").parts[:5] == old.manifest("label").parts
    cosines_NK = matrix(grown.embeddings()["embedding"]).astype(np.float64) @ matrix(old.centroids()["vector"]).T
    best_NL = np.argsort(-cosines_NK, axis=1, kind="stable")[:, :6]
    np.testing.assert_array_equal(matrix(grown.labels()["labels"]), best_NL)
    assert files.items() <= world.listing().items()


def test_lost_and_damaged_parts_are_made_again_and_nothing_else(world: World) -> None:
    parts = sorted((world.root / "label").rglob("*.parquet"))
    digest = world.status()["label"]["manifest_digest"]
    parts[0].unlink()
    assert world.plan()["label"] in ("partial", "hit")  # the part may belong to the data set before it grew
    done = world.run("--only", "label")
    assert done.code == 0, done.stderr
    assert world.status()["label"]["manifest_digest"] == digest


def test_units_that_are_done_are_sealed_again_without_work(world: World) -> None:
    digest = world.status()["embed"]["manifest_digest"]
    for manifest in (world.root / "embed").glob("*/manifests/*.json"):
        manifest.unlink()
    done = world.run("--only", "embed")
    assert done.code == 0, done.stderr
    [embed, *_] = done.summary["stages"]
    assert (embed["result"], embed["units_run"], embed["manifest_digest"]) == ("ran", 0, digest)


def test_settings_of_a_stage_that_was_not_selected_do_not_matter(world: World) -> None:
    done = world.run("--only", "embed", cluster__num_centroids=1000)
    assert done.code == 0, done.stderr
    assert done.results() == {"embed": "cached", **dict.fromkeys(STAGES[1:], "skipped")}


def test_a_stage_that_was_not_selected_must_be_committed(world: World) -> None:
    done = world.run("--only", "train", label__num_labels=5)
    assert done.code == 1
    assert "label is not committed" in done.stderr + done.stdout
    assert "--from-stage label" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_sigterm_in_the_middle_of_k_means_leaves_no_process_behind(world: World, tmp_path: Path, mlcd: Mlcd) -> None:
    request = [str(tmp_path) if word == str(world.root) else word for word in world.request()]
    child = mlcd.start("run", *request, *tiny_settings(cluster__iterations=1_000_000), "--json")
    family = wait_for_first_receipt(child, tmp_path, "cluster")
    child.terminate()
    assert child.wait(timeout=60) == 143
    _, alive = psutil.wait_procs(family, timeout=30)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
