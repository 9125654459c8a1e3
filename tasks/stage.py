"""The one procedure of every stage: look up, take the lease, run what is pending, seal.

A stage that is committed returns at once, takes no lease and writes nothing. A second run of the same waits for the
first and then finds it done, too. Nothing here asks Prefect: a job on a cluster runs the same procedure without it.
"""

import sys
import time
import uuid
from dataclasses import dataclass, field, replace
from typing import Any

from mlcd_core.config import num_workers
from mlcd_core.errors import MlcdError
from mlcd_core.events import silent
from mlcd_core.specs import StageName
from mlcd_core.store import Manifest, StageFolder, StagePlan
from mlcd_core.store.lease import Lease
from tasks.failures import worker_errors
from tasks.lease import stage_lease
from tasks.ray_session import RaySession
from tasks.reporting import stage_logger, stage_report
from tasks.run import Run
from tasks.run_record import RunRecord
from tasks.tables import stage_note
from tasks.work import Job, StageWork
from tasks.work_clock import WorkClock

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


def failed_outcome(stage: StageName, error: MlcdError, *, seconds: float) -> StageOutcome:
    """How a stage ended that an error meant for people ended."""
    text = f"{type(error).__name__}: {error}"
    return StageOutcome(stage, "failed", seconds=seconds, error=text, code=error.code)


def run_stage(work: StageWork, run: Run, session: RaySession, manner: Manner, *, run_name: str) -> StageOutcome:
    """Look up, run what is pending and seal one stage. run_name: what people call this run where it holds the lease.

    Raises LeaseHeldError when another run makes the same for longer than may be waited for.
    """
    started = time.monotonic()
    stage = work.spec.STAGE
    folder = StageFolder(run.files, work.spec)
    record = RunRecord(run.files, run.request.name)
    plan = plan_stage(folder, work, manner)
    # what was sealed before can be read until the next manifest stands
    record.note(stage, folder.fingerprint, work, plan.manifest or plan.previous)
    manifest = plan.manifest
    if manifest is None:
        with stage_lease(folder, work.inputs, run=run_name, log=stage_logger(), wait_s=manner.wait_s) as lease:
            if stage in manner.force:
                folder.force(work.inputs, manner.token)
            plan = plan_stage(folder, work, manner)
            workers = num_workers(run.config, stage)
            manifest = plan.manifest or _make(work, Job(folder, plan, session, silent), lease, workers)
        record.note(stage, folder.fingerprint, work, manifest)
    return StageOutcome(
        stage,
        "cached" if plan.manifest else "ran",
        manifest,
        run.files.uri(folder.prefix),
        units_run=0 if plan.manifest else len({task.unit for task in plan.pending}) if work.units else 1,
        seconds=time.monotonic() - started,
    )


def plan_stage(folder: StageFolder, work: StageWork, manner: Manner) -> StagePlan:
    """What a stage needs of whoever runs it in this manner."""
    if work.spec.STAGE in manner.force:
        begun = folder.forced(work.inputs, manner.token)
        return folder.plan(work.inputs, work.units, least_attempt=begun or UNBEGUN)
    redo = folder.failed_units(work.units) if manner.retry_failed else frozenset[str]()
    return folder.plan(work.inputs, work.units, redo)


def _make(work: StageWork, job: Job, lease: Lease, workers: int) -> Manifest:
    job.folder.open()
    with stage_report(work.spec.STAGE) as report, worker_errors():
        clock = WorkClock(report)
        made = work.make(replace(job, report=clock))
    lease.confirm()
    return job.folder.seal(
        work.inputs,
        made.receipts,
        attempt=job.plan.attempt,
        expected_rows=work.expected_rows,
        metrics=made.metrics,
        notes={**made.notes, "timing": {**clock.timing(), "workers": workers}},
    )
