"""The one procedure of every stage: look up, take the lease, run what is pending, seal, show.

A stage that is committed returns ``Cached`` at once. Prefect's own result cache stays off: it answers a storage error
with a silent recompute. What is done is decided by receipts and manifests alone, so a UI retry, a new run, another
machine or an erased PREFECT_HOME all find the same finished work. A second run of the same waits for the first and
then finds it done, too; a stage that is committed takes no lease and writes nothing.
"""

import logging
import sys
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from mlcd_core.errors import MlcdError, UpstreamMissingError
from mlcd_core.events import silent
from mlcd_core.identity import fingerprint, short
from mlcd_core.specs import STAGES, StageName
from mlcd_core.store import Manifest, StageFolder, StagePlan
from mlcd_core.store.lease import Lease
from tasks.approval import approval_report, require_approval
from tasks.artifacts import publish_stage_artifact
from tasks.failures import worker_errors
from tasks.lease import stage_lease
from tasks.pin import Pinned, resolve_pins
from tasks.ray_session import RaySession
from tasks.reporting import prefect_report, stage_logger
from tasks.run import Run
from tasks.run_record import RunRecord
from tasks.tables import stage_note
from tasks.train import check_train
from tasks.work import UPSTREAM, Committed, Job, StageWork, stage_work

UNBEGUN = sys.maxsize  # an attempt that nothing has: what is forced is not begun yet


@dataclass(frozen=True)
class Manner:
    """How stages are run that may be done already, or are being done by another run.

    retry_failed: units that could not be done (of embed: its shard could not be read, or its worker died) are done
    again as their next attempt, though the stage may be committed; the manifest seals as its next attempt. A stage
    without such units is looked up as ever. Equal bytes are an equal digest: then all stages below are hits.
    force: stages that are made again from the beginning, as a new attempt; what is sealed stands until it seals.
    token: who forces; with the same token a stage that was forced is not forced again, but gone on with.
    wait_s: how long to wait for another run that makes the same, negative for as long as it takes.
    approve_before: the stage that a person must approve before it runs; "" for none.
    """

    retry_failed: bool = False
    force: frozenset[StageName] = frozenset()
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    wait_s: float = -1.0
    approve_before: str = ""


@dataclass(frozen=True)
class StageOutcome:
    """How a stage of a run ended: cached, ran, failed or skipped; ``manifest`` is None unless it is committed.

    code: that of the error, where one meant for people ended the stage.
    """

    stage: StageName
    result: str
    manifest: Manifest | None = None
    uri: str = ""
    units_run: int = 0
    seconds: float = 0.0
    error: str = ""
    code: str = ""
    pin: str = ""

    def record(self) -> dict[str, Any]:
        """The stage's entry in ``mlcd run --json``."""
        manifest = self.manifest
        return {
            "stage": self.stage,
            "result": self.result,
            "state": "committed" if manifest else "absent",
            "spec": manifest.spec if manifest else None,
            "input": manifest.input if manifest else None,
            "manifest_digest": manifest.digest if manifest else None,
            "rows": manifest.rows if manifest else None,
            "usable": manifest.usable if manifest else None,
            "uri": self.uri,
            "units_run": self.units_run,
            "seconds": round(self.seconds, 3),
            "note": self.pin or (stage_note(manifest) if manifest else ""),
            "error": self.error,
            "code": self.code,
        }


def run_stages(
    run: Run, selected: list[StageName], session: RaySession, manner: Manner | None = None
) -> list[StageOutcome]:
    """Run the selected stages in order; the others must be committed where a selected one reads them.

    A pinned stage never runs. After a failed stage the rest is skipped. ``session`` is started by the first stage that
    has work.
    """
    manner = manner or Manner()
    pinned = resolve_pins(run)
    if "train" in selected:
        check_train(run)
    outcomes: list[StageOutcome] = []
    committed: dict[StageName, Manifest] = {}
    for stage in STAGES:
        if outcomes and outcomes[-1].result == "failed":
            outcomes += [StageOutcome(rest, "skipped") for rest in STAGES[len(outcomes) :]]
            break
        if stage in selected and stage not in pinned:
            outcome = _selected(stage, run, committed, session, manner)
        elif stage in pinned:
            outcome = _pinned(stage, run, pinned[stage])
        else:
            outcome = _unselected(stage, run, committed, needed=_needed(stage, selected, pinned))
        if outcome.manifest is not None:
            committed[stage] = outcome.manifest
        outcomes.append(outcome)
    return outcomes


def _selected(stage: StageName, run: Run, committed: Committed, session: RaySession, manner: Manner) -> StageOutcome:
    """Run a stage as a task of its own, once it is approved where that is asked for."""
    if stage == manner.approve_before:
        try:
            _approve(stage, run, committed, manner)
        except MlcdError as error:
            return _failed(stage, error)
    task_of_stage = stage_task.with_options(name=stage)
    state = task_of_stage(stage, run, committed, session, manner, return_state=True)
    outcome = state.result(raise_on_failure=False)
    if isinstance(outcome, Exception):
        raise outcome
    assert isinstance(outcome, StageOutcome)
    return outcome


def _approve(stage: StageName, run: Run, committed: Committed, manner: Manner) -> None:
    """Suspend the run until a stage with work to do is approved. Prefect suspends flows only, so not in its task."""
    work = stage_work(stage, run, committed)
    folder = StageFolder(run.files, work.spec)
    if _plan(folder, work, manner).manifest is None:
        question = f"{stage}-{short(folder.fingerprint)}-{short(fingerprint(work.inputs))}"
        require_approval(stage, question, approval_report(stage, run.request.name, committed))


def _failed(stage: StageName, error: MlcdError, seconds: float = 0.0) -> StageOutcome:
    """What an error meant for people makes of a stage; the log has its text."""
    text = f"{type(error).__name__}: {error}"
    stage_logger().error(text)
    return StageOutcome(stage, "failed", seconds=seconds, error=text, code=error.code)


@task(cache_policy=NO_CACHE, persist_result=False)
def stage_task(stage: StageName, run: Run, committed: Committed, session: RaySession, manner: Manner) -> Any:
    """Bring one stage to its manifest. The state is ``Cached`` when it was committed already.

    An error meant for people becomes a failed state with its text; any other is raised with its traceback.
    """
    started = time.monotonic()
    try:
        outcome = run_stage(stage, run, committed, session, manner)
    except MlcdError as error:
        failed = _failed(stage, error, time.monotonic() - started)
        return Failed(message=failed.error, data=failed)
    return Completed(name="Cached", data=outcome) if outcome.result == "cached" else outcome


def run_stage(stage: StageName, run: Run, committed: Committed, session: RaySession, manner: Manner) -> StageOutcome:
    """Look up, run what is pending, seal and show one stage.

    Raises LeaseHeldError when another run makes the same for longer than may be waited for.
    """
    started = time.monotonic()
    work = stage_work(stage, run, committed)
    folder = StageFolder(run.files, work.spec)
    record = RunRecord(run.files, run.request.name)
    plan = _plan(folder, work, manner)
    # what was sealed before can be read until the next manifest stands
    record.note(stage, folder.fingerprint, work, plan.manifest or plan.previous)
    manifest = plan.manifest
    if manifest is None:
        name = flow_run.name or run.request.name
        with stage_lease(folder, work.inputs, run=name, log=stage_logger(), wait_s=manner.wait_s) as lease:
            if stage in manner.force:
                folder.force(work.inputs, manner.token)
            plan = _plan(folder, work, manner)
            manifest = plan.manifest or _make(work, Job(folder, plan, session, silent), lease)
        record.note(stage, folder.fingerprint, work, manifest)
    outcome = StageOutcome(
        stage,
        "cached" if plan.manifest else "ran",
        manifest,
        run.files.uri(folder.prefix),
        units_run=0 if plan.manifest else len({task.unit for task in plan.pending}) if work.units else 1,
        seconds=time.monotonic() - started,
    )
    said = outcome.record()
    stage_logger().info("%s %s: %s", stage, said["result"], said["note"])
    publish_stage_artifact(said, manifest, run)
    return outcome


def _plan(folder: StageFolder, work: StageWork, manner: Manner) -> StagePlan:
    if folder.spec.STAGE in manner.force:
        begun = folder.forced(work.inputs, manner.token)
        return folder.plan(work.inputs, work.units, least_attempt=begun or UNBEGUN)
    redo = folder.failed_units(work.units) if manner.retry_failed else frozenset[str]()
    return folder.plan(work.inputs, work.units, redo)


def _make(work: StageWork, job: Job, lease: Lease) -> Manifest:
    job.folder.open()
    with prefect_report() as report, worker_errors():
        made = work.make(replace(job, report=report))
    lease.confirm()
    return job.folder.seal(
        work.inputs,
        made.receipts,
        attempt=job.plan.attempt,
        expected_rows=work.expected_rows,
        metrics=made.metrics,
        notes=made.notes,
    )


def _pinned(stage: StageName, run: Run, pinned: Pinned) -> StageOutcome:
    """Use the pinned manifest as it is."""
    stage_logger().log(logging.WARNING if pinned.ignored else logging.INFO, "%s is %s", stage, pinned.note)
    manifest = pinned.manifest
    RunRecord(run.files, run.request.name).note_pinned(stage, manifest, pinned.source)
    uri = run.files.uri(f"{stage}/{short(manifest.spec)}")
    return StageOutcome(stage, "cached", manifest, uri, pin=pinned.note)


def _unselected(stage: StageName, run: Run, committed: Committed, *, needed: bool) -> StageOutcome:
    """Look a stage up without running it; it is failed when it is needed and not committed."""
    missing: MlcdError = UpstreamMissingError(
        f"{stage} is not committed for these settings and data, and it was not selected to run; "
        f"run it first (--only {stage}), or select from it on (--from-stage {stage})"
    )
    if all(upstream in committed for upstream in UPSTREAM[stage]):
        try:
            work = stage_work(stage, run, committed)
            folder = StageFolder(run.files, work.spec)
            manifest = folder.plan(work.inputs, work.units).manifest
        except MlcdError as error:
            missing, manifest = error, None
        if manifest is not None:
            RunRecord(run.files, run.request.name).note(stage, folder.fingerprint, work, manifest)
            return StageOutcome(stage, "cached", manifest, run.files.uri(folder.prefix))
    if not needed:
        return StageOutcome(stage, "skipped")
    return StageOutcome(stage, "failed", error=f"{type(missing).__name__}: {missing}")


def _needed(stage: StageName, selected: Collection[StageName], pinned: Collection[StageName]) -> bool:
    """Whether a selected stage reads this one, directly or through others; a pinned stage reads nothing."""
    below = [other for other in STAGES if stage in UPSTREAM[other] and other not in pinned]
    return any(other in selected or _needed(other, selected, pinned) for other in below)
