"""As a Prefect user: worker, deploy, ``deployment run --watch``, exit codes, a deployment per stage, approval."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.states import Scheduled

from tests.integration.harness import BIN, TINY, post, stop, until, write_scenes

REPO = Path(__file__).parents[2]
DEPLOYMENTS = {f"{flow}/local" for flow in ("pipeline", "embed", "cluster", "label", "train", "evaluate")}
MOST_ARTIFACT_CHARACTERS = 300_000
START_S, CANCEL_S = 300, 30


class PrefectUser:
    """Runs the prefect command against the session's server."""

    def __init__(self, api: str, folder: Path) -> None:
        self.api = api
        self.root = folder / "root"
        self.data = folder / "data"
        self.environment = {**os.environ, "PREFECT_API_URL": api}
        self.worker = psutil.Process()

    def prefect(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [str(BIN / "prefect"), *words]
        return subprocess.run(
            command, capture_output=True, text=True, env=self.environment, cwd=REPO, timeout=400, check=False
        )

    def parameters(self, **parameters: Any) -> dict[str, Any]:
        return {"data": f"{self.data}/*.parquet", "root": str(self.root), "overrides": TINY, **parameters}

    def run(self, deployment: str, **parameters: Any) -> "subprocess.CompletedProcess[str]":
        given = self.parameters(**parameters)
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
        user.worker = psutil.Process(worker.pid)
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
    assert all("type" in field for field in form.values()), "a union has no usable field in V2 of the UI"


def test_a_plan_is_an_artifact_and_runs_nothing(user: PrefectUser) -> None:
    done = user.run("pipeline/local", plan_only=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [artifact] = user.post("artifacts/filter", {"artifacts": {"key": {"any_": ["mlcd-plan"]}}})
    assert "embed     miss" in artifact["data"]
    assert not user.root.exists()


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


class ApprovedRun:
    """A run of ``pipeline/local`` up to train, which a person must approve."""

    def __init__(self, user: PrefectUser, client: SyncPrefectClient) -> None:
        self.client = client
        deployment = self.client.read_deployment_by_name("pipeline/local").id
        parameters = user.parameters(until="train", approve_before="train")
        self.id: UUID = self.client.create_flow_run_from_deployment(deployment, parameters=parameters).id

    def settled(self) -> State:
        """The state once the run waits for a person, or is over."""
        deadline = time.monotonic() + 300
        while True:
            state = self.client.read_flow_run(self.id).state
            assert state is not None
            if state.is_paused() or state.is_final():
                return state
            assert time.monotonic() < deadline, f"the run is {state.name} after 300 s"
            time.sleep(0.5)

    def answer(self, **given: Any) -> State:
        """The state that an answer ends in."""
        self.client.resume_flow_run(self.id, run_input=given)
        return self.settled()


@pytest.fixture
def client(user: PrefectUser) -> Iterator[SyncPrefectClient]:
    with SyncPrefectClient(user.api) as client:
        yield client


def test_a_rejected_stage_does_not_run_and_a_retry_is_not_asked_again(
    user: PrefectUser, client: SyncPrefectClient
) -> None:
    run = ApprovedRun(user, client)
    state = run.settled()
    assert state.name == "Suspended"
    keys = state.state_details.run_input_keyset
    assert keys is not None
    shown = json.loads(client.read_flow_run_input(run.id, keys["description"]))
    assert "- clusters: 12\n" in shown
    assert "![cluster sizes](data:image/png;base64," in shown
    rejected = run.answer(decision="reject", note="too few clusters")
    assert rejected.is_failed()
    assert "RejectedError: train was not approved: too few clusters" in str(rejected.message)
    client.set_flow_run_state(run.id, Scheduled())
    retried = run.settled()
    assert retried.is_failed()
    assert retried.id != rejected.id
    assert retried.message == rejected.message
    assert not (user.root / "train").exists()


def test_an_approved_stage_runs(user: PrefectUser, client: SyncPrefectClient) -> None:
    run = ApprovedRun(user, client)
    assert run.settled().name == "Suspended"
    assert not (user.root / "train").exists()
    assert run.answer(decision="approve").is_completed()
    assert len(list(user.root.glob("train/*/manifests/*.json"))) == 1


def test_a_stage_that_is_committed_needs_no_approval(user: PrefectUser, client: SyncPrefectClient) -> None:
    assert ApprovedRun(user, client).settled().is_completed()


def test_a_cancelled_run_is_cancelled_and_leaves_no_process(user: PrefectUser, client: SyncPrefectClient) -> None:
    committed = set(user.root.glob("train/*/units/*.json"))
    deployment = client.read_deployment_by_name("pipeline/local").id
    parameters = user.parameters(overrides={**TINY, "train.epochs": 400, "train.seed": 5})
    run = client.create_flow_run_from_deployment(deployment, parameters=parameters).id
    until(lambda: set(user.root.glob("train/*/units/*.json")) - committed, START_S)
    processes = user.worker.children(recursive=True)
    assert any("ray" in process.name() for process in processes)
    assert user.prefect("flow-run", "cancel", str(run)).returncode == 0
    _, alive = psutil.wait_procs(processes, timeout=CANCEL_S)
    assert alive == []

    def state() -> State:
        now = client.read_flow_run(run).state
        assert now is not None
        return now

    until(lambda: state().is_final(), CANCEL_S)
    assert state().is_cancelled(), state()
