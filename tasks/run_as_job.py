"""Brings a stage to its manifest by a job of a Ray cluster: looks it up here, and lets the cluster run what is pending.

A stage that is committed asks no cluster. The job takes the stage's lease, this process takes none. What the job logs
is logged here as it comes; its error is the stage's error, in the same words as without jobs.
"""

import logging
import os
import re
import shlex
import time
from dataclasses import dataclass, replace

from mlcd_core.config import environment_keys
from mlcd_core.errors import StageFailedError
from mlcd_core.identity import fingerprint, short
from mlcd_core.store import StageFolder, StagePlan
from tasks.lease import Log
from tasks.progress_bar import PROGRESS_NAME, Bar, stage_bar
from tasks.ray_jobs import RayJobs
from tasks.reporting import stage_logger
from tasks.run import Run
from tasks.run_record import RunRecord
from tasks.stage import Manner, StageOutcome, plan_stage
from tasks.stage_job import Order, Said
from tasks.work import Committed, StageWork

PROGRESS_LINE = re.compile(rf"{PROGRESS_NAME} (\d+\.\d) (.*)")


def run_as_job(
    work: StageWork, run: Run, committed: Committed, jobs: RayJobs, manner: Manner, *, run_name: str
) -> StageOutcome:
    """Look up a stage, and where it is not committed run it as a job, or follow the job that runs it already.

    Raises StageFailedError when the job ended without a word about the stage.
    """
    started = time.monotonic()
    stage = work.spec.STAGE
    folder = StageFolder(run.files, work.spec)
    plan = plan_stage(folder, work, manner)
    said = Said("cached")
    if plan.manifest is None:
        order = Order(
            stage,
            # the settings of this environment, for the cluster has its own
            replace(run.request, overrides={**environment_keys(os.environ), **run.request.overrides}),
            manner,
            {upstream: manifest.path for upstream, manifest in committed.items()},
            folder.fingerprint,
            fingerprint(work.inputs),
            run_name,
        )
        said = _carried_out(order, plan, jobs)
        if said.error:
            seconds = time.monotonic() - started
            return StageOutcome(stage, "failed", seconds=seconds, error=said.error, code=said.code)
        # what failed again is committed as failed
        plan = plan_stage(folder, work, replace(manner, retry_failed=False))
    if plan.manifest is None:
        raise StageFailedError(
            f"a job on {jobs.address} says that {stage} is done, and {run.files.uri(folder.prefix)} holds no manifest "
            "of it; expected the same storage under that address here and there: use a root on S3, or a shared folder"
        )
    RunRecord(run.files, run.request.name).note(stage, folder.fingerprint, work, plan.manifest)
    uri, seconds = run.files.uri(folder.prefix), time.monotonic() - started
    return StageOutcome(stage, said.result, plan.manifest, uri, units_run=said.units_run, seconds=seconds)


def job_name(order: Order, plan: StagePlan) -> str:
    """What the jobs are called that make the same under the same root in the same manner, without their number."""
    # an attempt that is forced is not begun yet; who asks for it gets it once
    attempt = f"f{short(fingerprint(order.manner.token))}" if order.stage in order.manner.force else str(plan.attempt)
    redo = "r" if order.manner.retry_failed else ""
    root = short(fingerprint(order.request.root))
    return f"mlcd-{order.stage}-{short(order.spec)}-{short(order.input)}-{root}-{attempt}{redo}"


def _carried_out(order: Order, plan: StagePlan, jobs: RayJobs) -> Said:
    """What the job of an order says of its stage. Raises StageFailedError when it ended without a word."""
    log = stage_logger()
    lines = _Lines(log, stage_bar())
    command = f"python -m tasks.stage_job {shlex.quote(order.to_json())}"
    end = jobs.run(job_name(order, plan), command, log=log, hear=lines)
    if lines.said is None:
        raise StageFailedError(
            f"the job {end.id} on {jobs.address} ended as {end.status} before the stage did "
            f"({end.message.partition(chr(10))[0]}); its last line was {lines.last!r}. What is finished is kept: run "
            "again, and a new job goes on from there"
        )
    return lines.said


@dataclass
class _Lines:
    """Logs the lines of a job at their levels, moves the bar, and keeps what the job said of the stage."""

    log: Log
    bar: Bar
    said: Said | None = None
    last: str = ""

    def __call__(self, line: str) -> None:
        said = Said.from_line(line)
        if said is not None:
            self.said = said
        elif moved := PROGRESS_LINE.fullmatch(line):
            self.bar(float(moved[1]), moved[2])
        elif line.strip():
            self.last = line
            level, _, text = line.partition(" ")
            known = logging.getLevelNamesMapping().get(level)
            self.log.log(known or logging.INFO, "%s", text if known else line)
