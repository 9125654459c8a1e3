"""The one procedure of every stage: look up, run what is pending, seal, show.

A stage that is committed returns ``Cached`` at once. Prefect's own result cache stays off: it answers a storage error
with a silent recompute. What is done is decided by receipts and manifests alone, so a UI retry, a new run, another
machine or an erased PREFECT_HOME all find the same finished work.
"""

import time
from dataclasses import dataclass
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from mlcd_core.errors import UpstreamMissingError
from mlcd_core.identity import fingerprint
from mlcd_core.specs import STAGES, StageName
from mlcd_core.store import Manifest, StageFolder, StagePlan
from tasks.artifacts import publish_stage_artifact
from tasks.ray_session import RaySession
from tasks.reporting import prefect_report
from tasks.run import Run, RunRecord
from tasks.work import UPSTREAM, Committed, Job, StageWork, stage_work


@dataclass(frozen=True)
class StageOutcome:
    """How a stage of a run ended; ``manifest`` is None when it was skipped."""

    stage: StageName
    result: str
    manifest: Manifest | None
    uri: str
    units_run: int
    seconds: float

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
        }


def run_stages(run: Run, selected: list[StageName]) -> list[StageOutcome]:
    """Run the selected stages in order; the others must be committed where a selected one reads them."""
    outcomes: list[StageOutcome] = []
    committed: dict[StageName, Manifest] = {}
    with RaySession() as session:
        for stage in STAGES:
            if stage in selected:
                state: State[StageOutcome] = stage_task.with_options(name=stage)(
                    stage, run, committed, session, return_state=True
                )
                outcome = state.result()
            else:
                outcome = _unselected(stage, run, committed, needed=_needed(stage, selected))
            if outcome.manifest is not None:
                committed[stage] = outcome.manifest
            outcomes.append(outcome)
    return outcomes


@task(cache_policy=NO_CACHE, persist_result=False)
def stage_task(stage: StageName, run: Run, committed: Committed, session: RaySession) -> Any:
    """Bring one stage to its manifest. The state is ``Cached`` when it was committed already."""
    outcome = run_stage(stage, run, committed, session)
    return Completed(name="Cached", data=outcome) if outcome.result == "cached" else outcome


def run_stage(stage: StageName, run: Run, committed: Committed, session: RaySession) -> StageOutcome:
    """Look up, run what is pending, seal and show one stage."""
    started = time.monotonic()
    work = stage_work(stage, run, committed)
    folder = StageFolder(run.files, work.spec)
    plan = folder.plan(work.inputs, work.units)
    record = RunRecord(run.files, run.request.name)
    units_run = 0
    manifest = plan.manifest
    if manifest is None:
        manifest, units_run = _make(stage, work, folder, plan, session, record)
    record.sealed(stage, manifest)
    result = "cached" if plan.manifest else "ran"
    uri = run.files.uri(folder.prefix)
    outcome = StageOutcome(stage, result, manifest, uri, units_run, time.monotonic() - started)
    publish_stage_artifact(outcome.record(), manifest)
    return outcome


def _make(
    stage: StageName, work: StageWork, folder: StageFolder, plan: StagePlan, session: RaySession, record: RunRecord
) -> tuple[Manifest, int]:
    folder.open()
    record.started(
        stage,
        spec=folder.fingerprint,
        input_digest=fingerprint(work.inputs),
        units=list(work.units),
        last_number=work.last_number,
    )
    with prefect_report(stage) as report:
        made = work.make(Job(folder, plan, session, report))
    manifest = folder.seal(
        work.inputs,
        made.receipts,
        attempt=plan.attempt,
        expected_rows=work.expected_rows,
        metrics=made.metrics,
        notes=made.notes,
    )
    return manifest, max(1, len(plan.pending))


def _unselected(stage: StageName, run: Run, committed: Committed, *, needed: bool) -> StageOutcome:
    """Look a stage up without running it. Raises UpstreamMissingError when it is needed and not committed."""
    manifest = None
    if all(upstream in committed for upstream in UPSTREAM[stage]):
        work = stage_work(stage, run, committed)
        folder = StageFolder(run.files, work.spec)
        manifest = folder.plan(work.inputs, work.units).manifest
        if manifest is not None:
            return StageOutcome(stage, "cached", manifest, run.files.uri(folder.prefix), 0, 0.0)
    if needed:
        raise UpstreamMissingError(
            f"{stage} is not committed for these settings and data, and it was not selected to run; "
            f"run it first (--only {stage}), or select from it on (--from-stage {stage})"
        )
    return StageOutcome(stage, "skipped", manifest, "", 0, 0.0)


def _needed(stage: StageName, selected: list[StageName]) -> bool:
    """Whether a selected stage reads this one, directly or through others."""
    below = [other for other in STAGES if stage in UPSTREAM[other]]
    return any(other in selected or _needed(other, selected) for other in below)
