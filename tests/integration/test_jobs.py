"""Stages as jobs of a real Ray cluster that the run is no node of: equal results, errors, kills and stops of the run.

The tests share one cluster and one reference root. They need what a dashboard that takes jobs is made of, which a local
session does without, for it starts more slowly with it on a busy machine:

    infra/dev run uv pip install 'ray[default]==2.60.0'
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mlcd_core import open_run
from tests.integration.harness import Mlcd, post, tiny_settings, wait_for_first_receipt, write_scenes
from tests.integration.ray_head import ENDED, RayHead, ray_head

pytest.importorskip("opencensus", reason="needs ray[default], see the top of this file")

STAGES = ["embed", "cluster", "label", "train", "evaluate"]
LIMIT_S = 240
# enough units that something is left to do after the first
LONG = {"embed__rows_per_unit": 1, "embed__workers": 1}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with ray_head(tmp_path_factory.mktemp("head") / "head.log", os.environ) as head:
        yield head


class World:
    """The command against the cluster, on roots and data of the tests."""

    def __init__(self, folder: Path, mlcd: Mlcd, head: RayHead) -> None:
        self.folder = folder
        self.head = head
        self.alone = mlcd
        self.mlcd = Mlcd(mlcd.api, head.variables)
        write_scenes(folder / "data", "train", shards=2)
        write_scenes(folder / "data", "test", shards=1)

    def words(self, root: str, *more: str, **settings: object) -> list[str]:
        data, test = self.folder / "data" / "train-*.parquet", self.folder / "data" / "test-*.parquet"
        labelled = ["--eval-data", str(test), "--label-column", "labels"]
        where = ["--root", str(self.folder / root), "--data", str(data), *labelled]
        return ["run", *where, *tiny_settings(**settings), "--json", *more]

    def on_the_cluster(self, root: str, *more: str, **settings: object) -> list[str]:
        return self.words(root, "--ray-address", self.head.address, *more, **settings)

    def digests(self, root: str, stages: list[str]) -> dict[str, str]:
        run = open_run(self.folder / root)
        return {stage: run.manifest(stage).digest for stage in stages}

    def start_embed(self, root: str) -> "subprocess.Popen[bytes]":
        """A run whose job has committed something and has more to do."""
        child = self.mlcd.start(*self.on_the_cluster(root, "--until", "embed", **LONG))
        wait_for_first_receipt(child, self.folder / root)
        return child


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, mlcd: Mlcd, head: RayHead) -> World:
    return World(tmp_path_factory.mktemp("jobs"), mlcd, head)


def driver_of(root: Path) -> psutil.Process:
    """The process of the job that works on a root."""
    [driver] = [
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [])[1:3] == ["-m", "tasks.stage_job"] and str(root) in process.info["cmdline"][3]
    ]
    return driver


def wait_until_ended(head: RayHead, job: str) -> str:
    deadline = time.monotonic() + LIMIT_S
    while (status := head.jobs()[job]) not in ENDED:
        assert time.monotonic() < deadline, f"{job} is {status}"
        time.sleep(0.5)
    return status


def test_each_stage_is_one_job_and_gives_what_it_gives_on_one_machine(world: World) -> None:
    done = world.mlcd(*world.on_the_cluster("root"))
    assert done.code == 0, done.stderr
    assert done.results() == dict.fromkeys(STAGES, "ran")
    assert [job.split("-")[1] for job in world.head.jobs()] == STAGES
    assert set(world.head.jobs().values()) == {"SUCCEEDED"}
    for line in ("embed unit: done", "label worker", "train rank 0: process"):  # of jobs and their workers
        assert line in done.stderr
    shown = post(world.alone.api, "artifacts/filter", {"artifacts": {"type": {"any_": ["progress"]}}})
    whole = {artifact["key"] for artifact in shown if artifact["data"] == 100}
    assert whole >= {f"mlcd-{stage}-progress" for stage in ("embed", "label", "train")}
    alone = world.alone(*world.words("alone", "--until", "label"))
    assert alone.code == 0, alone.stderr
    assert world.digests("alone", STAGES[:3]) == world.digests("root", STAGES[:3])


def test_a_run_of_committed_stages_asks_the_cluster_for_nothing(world: World) -> None:
    before = world.head.jobs()
    done = world.mlcd(*world.on_the_cluster("root"))
    assert done.results() == dict.fromkeys(STAGES, "cached")
    assert world.head.jobs() == before
    nobody = world.mlcd(*world.words("root", "--ray-address", "http://127.0.0.1:9"))
    assert nobody.results() == dict.fromkeys(STAGES, "cached")


def test_an_error_in_a_job_reads_as_without_jobs(world: World) -> None:
    settings = {"cluster__num_centroids": 1000}
    errors = []
    for words, mlcd in (
        (world.on_the_cluster("root", "--until", "cluster", **settings), world.mlcd),
        (world.words("root", "--until", "cluster", **settings), world.alone),
    ):
        done = mlcd(*words)
        assert done.code == 1
        errors.append([(stage["error"], stage["code"]) for stage in done.summary["stages"]])
    assert errors[0] == errors[1]
    assert errors[0][1][1] == "too-few-rows"


def test_a_forced_stage_is_made_again_as_the_next_attempt(world: World) -> None:
    done = world.mlcd(*world.on_the_cluster("root", "--until", "embed", "--force", "embed"))
    assert done.results()["embed"] == "ran", done.stderr
    assert open_run(world.folder / "root").manifest("embed").attempt == 2


def test_the_job_of_a_killed_run_goes_on_and_the_next_run_follows_it(world: World) -> None:
    before = world.head.jobs()
    child = world.start_embed("killed")
    driver = driver_of(world.folder / "killed")
    driver.suspend()  # so that it has not ended before the next run looks
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    [(job, status)] = [one for one in world.head.jobs().items() if one[0] not in before]
    assert status == "RUNNING"
    command = world.mlcd.command(world.on_the_cluster("killed", "--until", "embed", **LONG))
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stderr=pipe, stdout=pipe, text=True, env=world.mlcd.environment()) as again:
        assert again.stderr is not None
        said = ""
        while "is followed" not in said:
            line = again.stderr.readline()
            assert line, said
            said += line
        driver.resume()
        _, rest = again.communicate(timeout=LIMIT_S)
    assert again.returncode == 0, rest
    assert f"the job {job} runs on {world.head.address} already, and is followed" in said
    assert "rows_per_s" in rest
    assert [other for other in world.head.jobs() if other not in before] == [job]
    assert wait_until_ended(world.head, job) == "SUCCEEDED"


def test_a_run_that_is_terminated_stops_its_job_and_the_next_one_goes_on_with_another(world: World) -> None:
    before = world.head.jobs()
    child = world.start_embed("stopped")
    receipts = {path: path.read_bytes() for path in (world.folder / "stopped").glob("embed/*/units/*.json")}
    child.send_signal(signal.SIGTERM)
    child.wait(timeout=60)
    [(job, status)] = [one for one in world.head.jobs().items() if one[0] not in before]
    assert status == "STOPPED"
    done = world.mlcd(*world.on_the_cluster("stopped", "--until", "embed", **LONG))
    assert done.code == 0, done.stderr
    assert [other for other in world.head.jobs() if other not in before] == [job, f"{job.removesuffix('1')}2"]
    assert {path: path.read_bytes() for path in receipts} == receipts


def test_without_the_token_nothing_is_run(world: World) -> None:
    wrong = Mlcd(world.mlcd.api, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})
    done = wrong(*world.on_the_cluster("refused", "--until", "embed"))
    assert done.code == 1
    assert "RAY_AUTH_TOKEN" in done.stdout
