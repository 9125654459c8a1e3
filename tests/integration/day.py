"""A user's day with real processes: up, deploy, runs, kills, retries, other ways to run again, down.

    infra/dev day

One test, because each part stands on the state that the one before left. Everything goes through the commands and the
HTTP API that a person and the UI use.
"""

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.harness import BIN, TINY, post, until, write_id_of, write_scenes
from tests.servers import free_port

STAGES = ("embed", "cluster", "label", "train", "evaluate")
FLOW_RUN_S, CANCEL_S = 400, 30
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Day:
    """The commands of a user whose services, state and results lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self.root, self.data = folder / "root", folder / "data"
        self.port = free_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.environment = {**os.environ, "PREFECT_API_URL": self.api, "XDG_STATE_HOME": str(folder / "state")}
        self.pids: list[int] = []

    def command(self, name: str, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(BIN / name), *words], capture_output=True, text=True, env=self.environment, timeout=900, check=False
        )

    def up(self) -> None:
        done = self.command("mlcd", "up", "--port", str(self.port), "--json")
        assert done.returncode == 0, done.stderr
        self.pids = json.loads(done.stdout)["pids"]

    def deploy_run(self, deployment: str, *words: str, **parameters: Any) -> "subprocess.CompletedProcess[str]":
        given = {"data": f"{self.data}/train-*.parquet", "root": str(self.root), "overrides": TINY, **parameters}
        settings = [word for key, value in given.items() for word in ("-p", f"{key}={json.dumps(value)}")]
        return self.command("prefect", "deployment", "run", deployment, *settings, *words)

    def watched(self, deployment: str, **parameters: Any) -> int:
        return self.deploy_run(deployment, "--watch", "--watch-timeout", str(FLOW_RUN_S), **parameters).returncode

    def begin(self, deployment: str, **parameters: Any) -> str:
        """Start a run and return its id."""
        done = self.deploy_run(deployment, **parameters)
        assert done.returncode == 0, done.stdout + done.stderr
        return str(self.newest_run()["id"])

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return post(self.api, path, body)

    def newest_run(self) -> Any:
        [run] = self.post("flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 1})
        return run

    def state(self, run_id: str) -> str:
        [run] = self.post("flow_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
        return str(run["state"]["type"])

    def end_of(self, run_id: str, limit_s: float = FLOW_RUN_S) -> str:
        until(lambda: self.state(run_id) in ENDED, limit_s)
        return self.state(run_id)

    def reported_crashes(self, run_id: str) -> int:
        """How often the worker has ended with a run whose process was killed: what it logs last."""
        logs = self.post(
            "logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}, "limit": 200, "sort": "TIMESTAMP_DESC"}
        )
        return sum("memory allocation" in line["message"] for line in logs)

    def log(self, run_id: str) -> str:
        """All that a run has logged; what a killed process had not sent yet is lost."""
        query: dict[str, Any] = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"}
        lines: list[str] = []
        while page := self.post("logs/filter", {**query, "limit": 200, "offset": len(lines)}):
            lines += [line["message"] for line in page]
        return "\n".join(lines)

    def task_states(self, run_id: str) -> dict[str, str]:
        """Stage -> the name of the state of its newest task run."""
        runs = self.post(
            "task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}, "sort": "EXPECTED_START_TIME_ASC"}
        )
        return {run["name"].rpartition("-")[0]: run["state"]["name"] for run in runs}

    def flow_processes(self) -> list[psutil.Process]:
        """What the worker has started, and what that has."""
        worker = psutil.Process(self.pids[-1])
        return worker.children(recursive=True)

    def receipts(self) -> dict[str, str]:
        """Path -> write id of everything that is committed."""
        return {str(path.relative_to(self.root)): write_id_of(path) for path in self.root.glob("*/*/units/*.json")}

    def manifests(self, stage: str) -> list[Path]:
        return sorted(self.root.glob(f"{stage}/*/manifests/*.json"))


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended and waits for its parent does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def attempt_of(manifest: Path) -> int:
    return int(manifest.stem.rpartition("-")[2])


@pytest.fixture
def day(tmp_path: Path) -> Iterator[Day]:
    day = Day(tmp_path)
    write_scenes(day.data, "train", shards=4)
    day.up()
    yield day
    day.command("mlcd", "down")


def test_a_day(day: Day) -> None:
    again = day.command("mlcd", "up", "--port", str(free_port()))
    assert again.returncode == 2
    assert "run already" in again.stderr
    killed_in_each_stage_and_retried(day)
    all_cached_in_a_fresh_run(day)
    run_again_differently(day)
    cancelled(day)
    down(day)


def killed_in_each_stage_and_retried(day: Day) -> None:
    """What a retry begins with stands in its log: how many units are left, and at which step training goes on."""
    run_id = day.begin("pipeline/local")
    done: dict[str, int] = {}
    for kills, stage in enumerate(STAGES, start=1):
        until(lambda stage=stage: list(day.root.glob(f"{stage}/*/leases/*.json")), FLOW_RUN_S)
        time.sleep(random.uniform(0, 2))
        assert not day.manifests("evaluate"), "the run was faster than the kill"
        day.flow_processes()[0].send_signal(signal.SIGKILL)
        # two processes look after it and mark it as crashed; a retry that came between the two would be lost
        until(lambda kills=kills: day.reported_crashes(run_id) == kills, FLOW_RUN_S)
        assert day.end_of(run_id) == "CRASHED", stage
        until(lambda: not any("ray" in process.name() for process in day.flow_processes()), CANCEL_S)
        assert day.command("prefect", "flow-run", "retry", run_id).returncode == 0
        # after the workers of the killed run have ended, and before those of the retry begin
        done[stage] = 0 if day.manifests(stage) else len(list(day.root.glob(f"{stage}/*/units/*.json")))
        until(lambda: day.state(run_id) not in ENDED, FLOW_RUN_S)
    assert day.end_of(run_id) == "COMPLETED"
    log = day.log(run_id)
    for stage in ("embed", "label"):
        totals = [int(total) for total in re.findall(rf"{stage} unit: done \d+, total (\d+)", log)]
        if 0 < done[stage] < 4:
            assert totals[-1] == 4 - done[stage], f"finished units of {stage} were done again"
    steps = [int(step) for step in re.findall(r"train start: first_step (\d+)", log)]
    if done["train"]:  # a link every three steps, and one at the end
        assert 3 * (done["train"] - 1) < steps[-1] <= 3 * done["train"], "steps were trained again"
    for stage in STAGES:
        assert [attempt_of(path) for path in day.manifests(stage)] == [1]


def all_cached_in_a_fresh_run(day: Day) -> None:
    before = day.receipts()
    assert day.watched("pipeline/local") == 0
    assert day.receipts() == before
    assert day.task_states(day.newest_run()["id"]) == dict.fromkeys(STAGES, "Cached")


def run_again_differently(day: Day) -> None:
    assert day.watched("cluster/local") == 0
    assert day.task_states(day.newest_run()["id"]) == {"cluster": "Cached"}
    assert day.watched("pipeline/local", from_stage="label", until="label") == 0
    assert day.task_states(day.newest_run()["id"]) == {"label": "Cached"}
    assert day.watched("label/local", overrides={**TINY, "label.num_labels": 4}) == 0
    assert len(day.manifests("label")) == 2
    # forced: a new attempt with equal bytes, so what is below stays a hit; the same run retried forces no more
    assert day.watched("pipeline/local", force=["cluster"], until="label") == 0
    forced = day.newest_run()["id"]
    assert day.task_states(forced) == {"embed": "Cached", "cluster": "Completed", "label": "Cached"}
    assert [attempt_of(path) for path in day.manifests("cluster")] == [1, 2]
    # new shards with the centroids that are there
    write_scenes(day.data, "train", shards=1, first=4)
    assert day.watched("pipeline/local", name="grown", pin={"cluster": "default"}, until="label") == 0
    assert day.task_states(day.newest_run()["id"]) == {"embed": "Completed", "label": "Completed"}
    assert len(day.manifests("cluster")) == 2
    # a setting that is wrong fails the run, and the command that watches it says so
    assert day.watched("pipeline/local", overrides={**TINY, "train.epohcs": 1}) == 1
    assert "did you mean" in day.newest_run()["state"]["message"]


def cancelled(day: Day) -> None:
    long = {**TINY, "train.epochs": 200, "train.seed": 5}
    run_id = day.begin("pipeline/local", name="long", overrides=long)
    before = set(day.root.glob("train/*/units/*.json"))
    until(lambda: set(day.root.glob("train/*/units/*.json")) - before, FLOW_RUN_S)
    started = day.flow_processes()
    assert day.command("prefect", "flow-run", "cancel", run_id).returncode == 0
    until(lambda: not any(is_alive(process) for process in started), CANCEL_S)
    assert day.end_of(run_id, CANCEL_S) == "CANCELLED"


def down(day: Day) -> None:
    services = [psutil.Process(pid) for pid in day.pids]
    done = day.command("mlcd", "down")
    assert done.returncode == 0, done.stderr
    assert not any(is_alive(process) for process in services)
    assert day.command("mlcd", "down").returncode == 0
