"""The stages of one run in order, each as a Prefect task: which run, which must be there already, and what is shown.

Prefect's own result cache stays off: it answers a storage error with a silent recompute. What is done is decided by
receipts and manifests alone, so a UI retry, a new run, another machine or an erased PREFECT_HOME all find the same
finished work.
"""

import logging
import time
from collections.abc import Collection
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from mlcd_core.errors import MlcdError, UpstreamMissingError
from mlcd_core.identity import fingerprint, short
from mlcd_core.specs import STAGES, StageName
from mlcd_core.store import Manifest, StageFolder
from tasks.approval import approval_report, require_approval
from tasks.artifacts import publish_stage_artifact
from tasks.pin import Pinned, resolve_pins
from tasks.ray_jobs import RayJobs
from tasks.ray_session import RaySession
from tasks.reporting import stage_logger
from tasks.run import Run
from tasks.run_as_job import run_as_job
from tasks.run_record import RunRecord
from tasks.stage import Manner, StageOutcome, failed_outcome, plan_stage, run_stage
from tasks.train import check_train
from tasks.work import UPSTREAM, Committed, stage_work


def run_stages(
    run: Run, selected: list[StageName], ray: RaySession | RayJobs, manner: Manner | None = None
) -> list[StageOutcome]:
    """Run the selected stages in order; the others must be committed where a selected one reads them.

    A pinned stage never runs. After a failed stage the rest is skipped. ``ray`` is started, or asked for a job, by the
    first stage that has work.
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
            outcome = _selected(stage, run, committed, ray, manner)
        elif stage in pinned:
            outcome = _pinned(stage, run, pinned[stage])
        else:
            outcome = _unselected(stage, run, committed, needed=_needed(stage, selected, pinned))
        if outcome.manifest is not None:
            committed[stage] = outcome.manifest
        outcomes.append(outcome)
    return outcomes


def _selected(
    stage: StageName, run: Run, committed: Committed, ray: RaySession | RayJobs, manner: Manner
) -> StageOutcome:
    """Run a stage as a task of its own, once it is approved where that is asked for."""
    if stage == manner.approve_before:
        try:
            _approve(stage, run, committed, manner)
        except MlcdError as error:
            rejected = failed_outcome(stage, error, seconds=0.0)
            stage_logger().error(rejected.error)
            return rejected
    task_of_stage = stage_task.with_options(name=stage)
    state = task_of_stage(stage, run, committed, ray, manner, return_state=True)
    outcome = state.result(raise_on_failure=False)
    if isinstance(outcome, Exception):
        raise outcome
    assert isinstance(outcome, StageOutcome)
    return outcome


def _approve(stage: StageName, run: Run, committed: Committed, manner: Manner) -> None:
    """Suspend the run until a stage with work to do is approved. Prefect suspends flows only, so not in its task."""
    work = stage_work(stage, run, committed)
    folder = StageFolder(run.files, work.spec)
    if plan_stage(folder, work, manner).manifest is None:
        question = f"{stage}-{short(folder.fingerprint)}-{short(fingerprint(work.inputs))}"
        require_approval(stage, question, approval_report(stage, run.request.name, committed))


@task(cache_policy=NO_CACHE, persist_result=False)
def stage_task(stage: StageName, run: Run, committed: Committed, ray: RaySession | RayJobs, manner: Manner) -> Any:
    """Bring one stage to its manifest. The state is ``Cached`` when it was committed already.

    An error meant for people becomes a failed state with its text; any other is raised with its traceback.
    """
    started = time.monotonic()
    run_name = flow_run.name or run.request.name
    try:
        work = stage_work(stage, run, committed)
        if isinstance(ray, RayJobs):
            outcome = run_as_job(work, run, committed, ray, manner, run_name=run_name)
        else:
            outcome = run_stage(work, run, ray, manner, run_name=run_name)
    except MlcdError as error:
        outcome = failed_outcome(stage, error, seconds=time.monotonic() - started)
    if outcome.manifest is None:
        stage_logger().error(outcome.error)
        return Failed(message=outcome.error, data=outcome)
    said = outcome.record()
    stage_logger().info("%s %s: %s", stage, said["result"], said["note"])
    publish_stage_artifact(said, outcome.manifest, run)
    return Completed(name="Cached", data=outcome) if outcome.result == "cached" else outcome


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
