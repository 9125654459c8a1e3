"""As a Prefect user: worker, deploy, ``deployment run --watch``, exit codes, one deployment per stage."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import BIN, TINY, post, stop, write_scenes

REPO = Path(__file__).parents[2]
DEPLOYMENTS = {f"{flow}/local" for flow in ("pipeline", "embed", "cluster", "label", "train", "evaluate")}
MOST_ARTIFACT_CHARACTERS = 300_000


class PrefectUser:
    """Runs the prefect command against the session's server."""

    def __init__(self, api: str, folder: Path) -> None:
        self.api = api
        self.root = folder / "root"
        self.data = folder / "data"
        self.environment = {**os.environ, "PREFECT_API_URL": api}

    def prefect(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [str(BIN / "prefect"), *words]
        return subprocess.run(
            command, capture_output=True, text=True, env=self.environment, cwd=REPO, timeout=400, check=False
        )

    def run(self, deployment: str, **parameters: Any) -> "subprocess.CompletedProcess[str]":
        given = {"data": f"{self.data}/*.parquet", "root": str(self.root), "overrides": TINY, **parameters}
        words = [word for key, value in given.items() for word in ("-p", f"{key}={json.dumps(value)}")]
        return self.prefect("deployment", "run", deployment, *words, "--watch", "--watch-timeout", "300")

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return post(self.api, path, body)

    def last_state_message(self) -> str:
        [run] = self.post("flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 1})
        return str(run["state"]["message"])


@pytest.fixture(scope="module")
def user(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectUser]:
    user = PrefectUser(prefect_server, tmp_path_factory.mktemp("deployments"))
    write_scenes(user.data, "train", shards=2)
    command = [str(BIN / "prefect"), "worker", "start", "--pool", "mlcd-local", "--type", "process"]
    with (user.data.parent / "worker.log").open("w") as log:
        worker = subprocess.Popen(command, stdout=log, stderr=log, text=True, env=user.environment, cwd=user.data)
        # deploy fails until the worker has made the pool
        while user.prefect("work-pool", "inspect", "mlcd-local").returncode:
            assert worker.poll() is None, (user.data.parent / "worker.log").read_text()
        yield user
        stop(worker)


def test_deploy_makes_the_pipeline_and_one_deployment_per_stage(user: PrefectUser) -> None:
    done = user.prefect("--no-prompt", "deploy", "--name", "local")
    assert done.returncode == 0, done.stdout + done.stderr
    found = user.post("deployments/filter", {})
    flows = {flow["id"]: flow["name"] for flow in user.post("flows/filter", {})}
    assert {f"{flows[deployment['flow_id']]}/{deployment['name']}" for deployment in found} == DEPLOYMENTS
    [pipeline] = [deployment for deployment in found if flows[deployment["flow_id"]] == "pipeline"]
    form = pipeline["parameter_openapi_schema"]["properties"]
    assert {"root", "data", "only", "from_stage", "until", "overrides", "preset", "name"} <= set(form)
    assert all(field.get("description") for field in form.values())


def test_watched_run_exits_0_when_it_completed(user: PrefectUser) -> None:
    done = user.run("embed/local")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(user.root.glob("embed/*/manifests/*.json"))) == 1
    assert not (user.root / "cluster").exists()


def test_watched_run_exits_1_when_a_stage_fails_and_says_why(user: PrefectUser) -> None:
    done = user.run("pipeline/local", until="cluster", overrides={**TINY, "cluster.num_centroids": 1000})
    assert done.returncode == 1, done.stdout + done.stderr
    assert "cluster.num_centroids <= 20" in user.last_state_message()
    said = (user.data.parent / "worker.log").read_text()
    assert "RunFailedError: TooFewRowsError: 1,000 centroids" in said
    assert "TypeError" not in said


def test_relative_root_is_refused(user: PrefectUser) -> None:
    done = user.run("pipeline/local", root="somewhere")
    assert done.returncode == 1
    assert "absolute path" in user.last_state_message()


def test_finished_stages_are_reused_and_shown_as_cached(user: PrefectUser) -> None:
    done = user.run("pipeline/local", until="cluster")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = user.post("task_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 2})
    assert {run["name"].split("-")[0]: run["state"]["name"] for run in runs} == {
        "cluster": "Completed",
        "embed": "Cached",
    }


def test_pictures_of_the_clustering_are_artifacts(user: PrefectUser) -> None:
    [artifact] = user.post("artifacts/latest/filter", {"artifacts": {"key": {"any_": ["mlcd-cluster"]}}})
    assert artifact["data"].count("data:image/png;base64,") == 2


def test_clusters_are_shown_with_their_images(user: PrefectUser) -> None:
    assert user.run("label/local").returncode == 0
    [artifact] = user.post("artifacts/latest/filter", {"artifacts": {"key": {"any_": ["mlcd-label"]}}})
    assert "![clusters](data:image/png;base64," in artifact["data"]
    assert len(artifact["data"]) < MOST_ARTIFACT_CHARACTERS
