"""A stage as a job: looked up here, made there, and as if it had been made here. Each job runs in this process."""

import logging
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from mlcd_core.config import load_config
from mlcd_core.errors import DataError, MlcdError, StageFailedError
from mlcd_core.identity import fingerprint
from mlcd_core.images.digit_scenes import scene_parquet_bytes
from mlcd_core.specs import EmbedSpec, StageName
from mlcd_core.store import LocalFiles, StageFolder
from tasks.run import Request, Run
from tasks.run_as_job import job_name, run_as_job
from tasks.stage import Manner, StageOutcome, failed_outcome, plan_stage, run_stage
from tasks.stage_job import Order, Said, carry_out
from tasks.work import Job, Made, StageWork
from tests.unit.tasks.fake_dashboard import Dashboard

INPUTS = {"data": "0" * 64}
UNITS = tuple(fingerprint(name) for name in "abc")


class Cluster(Dashboard):
    """A dashboard whose jobs run as they are submitted."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        files = LocalFiles(root)
        self.folder = StageFolder(files, EmbedSpec())
        self.work = StageWork(EmbedSpec(), INPUTS, self.make, UNITS)
        self.here = Run(Request(str(root)), files, load_config("laptop", environment={}, overrides={}), (), (), "")
        self.error: MlcdError | None = None
        self.last_words = ""

    def submit_job(self, *, submission_id: str, entrypoint: str, runtime_env: object) -> str:
        super().submit_job(submission_id=submission_id, entrypoint=entrypoint, runtime_env=runtime_env)
        python, option, module, text = shlex.split(entrypoint)
        assert (python, option, module) == ("python", "-m", "tasks.stage_job")
        outcome = self.carry_out(Order.from_json(text))
        said = Said(outcome.result, outcome.units_run, outcome.error, outcome.code)
        failed = outcome.result == "failed"
        log = self.last_words or f"Running entrypoint\nWARNING a disk is full\n{said.to_line()}\n"
        self.ends(submission_id, "FAILED" if failed else "SUCCEEDED", log)()
        return submission_id

    def carry_out(self, order: Order) -> StageOutcome:
        try:
            return run_stage(self.work, self.here, None, order.manner, run_name=order.run_name)  # type: ignore[arg-type]
        except MlcdError as error:
            return failed_outcome(order.stage, error, seconds=0)

    def make(self, job: Job) -> Made:
        if self.error is not None:
            raise self.error
        for task in job.plan.pending:
            part = job.folder.put(task.unit[:12], ".arrow", task.unit.encode(), rows=1, usable=1)
            job.folder.commit(task, [part])
        return Made(job.folder.receipts(UNITS, job.plan), {"status": {"ok": 0}, "failed_units": []})

    def run(self, manner: Manner | None = None, *, run: Run | None = None) -> StageOutcome:
        return run_as_job(self.work, run or self.here, {}, self.jobs(), manner or Manner(), run_name="ours")

    def name(self, manner: Manner, root: str = "/root") -> str:
        order = Order("embed", Request(root), manner, {}, self.folder.fingerprint, fingerprint(INPUTS), "ours")
        return job_name(order, plan_stage(self.folder, self.work, manner))


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "root")


def test_a_stage_with_work_runs_as_a_job_and_is_then_found_without_one(cluster: Cluster) -> None:
    made = cluster.run()
    assert (made.result, made.units_run) == ("ran", 3)
    found = cluster.run()
    assert (found.result, found.units_run, found.manifest) == ("cached", 0, made.manifest)
    assert (cluster.connections, len(cluster.statuses)) == (1, 1)


def test_the_lines_of_a_job_are_logged_at_their_levels(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlcd")
    cluster.run()
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert ("WARNING", "a disk is full") in said
    assert ("INFO", "Running entrypoint") in said
    assert not any("ended: " in text for _, text in said)


def test_progress_of_a_job_moves_the_bar_and_is_no_line(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[float, str]] = []
    monkeypatch.setattr("tasks.run_as_job.stage_bar", lambda: lambda *moved: shown.append(moved))
    lines = ("PROGRESS 40.0 2 of 5 units", "INFO more", "PROGRESS 100.0 5 of 5 units", "PROGRESS of someone")
    cluster.last_words = "\n".join([*lines, Said("ran").to_line(), ""])
    caplog.set_level(logging.DEBUG, "mlcd")
    cluster.run()
    assert shown == [(40.0, "2 of 5 units"), (100.0, "5 of 5 units")]
    assert [text for text in caplog.messages if "PROGRESS" in text or "of 5 units" in text] == ["PROGRESS of someone"]


def test_an_error_of_the_job_is_the_stages_error_and_the_next_run_submits_the_next_job(cluster: Cluster) -> None:
    cluster.error = DataError("no shard:\n'a b' is empty")
    failed = cluster.run()
    assert (failed.result, failed.error, failed.code) == ("failed", "DataError: no shard:\n'a b' is empty", "data")
    cluster.error = None
    assert cluster.run().result == "ran"
    assert [job[-2:] for job in cluster.statuses] == ["-1", "-2"]


def test_a_job_that_ends_before_its_stage_is_an_error_with_its_last_line(cluster: Cluster) -> None:
    cluster.last_words = "Traceback\nModuleNotFoundError: No module named 'tasks'\n"
    with pytest.raises(StageFailedError, match=r"before the stage did .*No module named 'tasks'"):
        cluster.run()


def test_a_root_that_is_another_one_there_is_said(cluster: Cluster, tmp_path: Path) -> None:
    elsewhere = replace(cluster.here, files=LocalFiles(tmp_path / "elsewhere"))
    with pytest.raises(StageFailedError, match="holds no manifest"):
        cluster.run(run=elsewhere)


def test_a_forced_stage_is_made_once_for_each_run_that_forces_it(cluster: Cluster) -> None:
    def attempt(manner: Manner) -> tuple[str, int]:
        outcome = cluster.run(manner)
        assert outcome.manifest is not None
        return outcome.result, outcome.manifest.attempt

    force = frozenset[StageName]({"embed"})
    assert attempt(Manner()) == ("ran", 1)
    assert attempt(Manner(force=force, token="one")) == ("ran", 2)
    assert attempt(Manner(force=force, token="one")) == ("cached", 2)
    assert attempt(Manner(force=force, token="two")) == ("ran", 3)


def test_who_asks_for_the_same_in_the_same_manner_finds_the_job_and_nobody_else_does(cluster: Cluster) -> None:
    force = frozenset[StageName]({"embed"})
    manners = [
        Manner(),
        Manner(retry_failed=True),
        Manner(force=force, token="one"),
        Manner(force=force, token="two"),
    ]
    names = [cluster.name(manner) for manner in manners]
    assert len(set(names)) == 4
    assert cluster.name(Manner(token="another", wait_s=5)) == names[0]
    assert cluster.name(Manner(), root="/elsewhere") not in names
    # also when the job has begun
    cluster.folder.force(INPUTS, "one")
    assert cluster.name(manners[2]) == names[2]


def test_after_a_new_attempt_jobs_have_another_name(cluster: Cluster) -> None:
    first = cluster.name(Manner())
    cluster.run()
    [part] = [
        path
        for path in cluster.here.files.list(cluster.folder.prefix)
        if UNITS[0][:12] in path.path and ".arrow" in path.path
    ]
    (Path(cluster.here.files.uri("")) / part.path).unlink()
    assert cluster.name(Manner()) != first


@pytest.fixture
def order(tmp_path: Path) -> Order:
    shard = tmp_path / "train.parquet"
    shard.write_bytes(scene_parquet_bytes("train", 0, 4, 0))
    request = Request(str(tmp_path / "root"), data=str(shard), overrides={"train.epochs": 3}, pin={})
    manner = Manner(True, frozenset[StageName]({"embed", "train"}), "token", 2.5)
    return Order("embed", request, manner, {}, "0" * 64, "1" * 64, "it's ours")


def test_an_order_is_the_same_after_its_way_to_the_cluster(order: Order) -> None:
    [text] = shlex.split(shlex.quote(order.to_json()))
    assert Order.from_json(text) == order


def test_a_stage_that_is_another_one_on_the_cluster_is_not_made(order: Order) -> None:
    outcome = carry_out(order)
    assert (outcome.result, outcome.code) == ("failed", "config")
    assert "the spec and the input of embed is on the cluster not what it is where the run was started" in outcome.error


def test_a_manifest_that_the_cluster_does_not_see_is_said(order: Order) -> None:
    outcome = carry_out(replace(order, stage="cluster", committed={"embed": "embed/a/manifests/b-0001.json"}))
    assert (outcome.result, outcome.code) == ("failed", "upstream-missing")
    assert "expected the same storage" in outcome.error


def test_a_manifest_is_found_where_it_says_it_stands(cluster: Cluster) -> None:
    manifest = cluster.run().manifest
    assert manifest is not None
    assert cluster.here.files.read(manifest.path) is not None
