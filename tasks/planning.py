"""``plan``: what a run would do. ``status``: what a run has made. Neither starts anything."""

from typing import Any

from mlcd_core.errors import ConfigError
from mlcd_core.identity import short
from mlcd_core.specs import STAGES, StageName
from mlcd_core.store import FileInfo, LocalFiles, Manifest, StageFolder
from mlcd_core.store.chain import chain_unit
from tasks.run import Run, RunRecord
from tasks.work import UPSTREAM, settings, stage_work


def plan_stages(run: Run) -> list[dict[str, Any]]:
    """hit, partial or miss per stage; ``waits`` where an upstream digest is not known yet."""
    committed: dict[StageName, Manifest] = {}
    plans = []
    for stage in STAGES:
        waiting = [upstream for upstream in UPSTREAM[stage] if upstream not in committed]
        if waiting:
            plans.append(_waits(stage, waiting))
            continue
        work = stage_work(stage, run, committed)
        folder = StageFolder(run.files, work.spec)
        plan = folder.plan(work.inputs, work.units)
        if plan.manifest is not None:
            committed[stage] = plan.manifest
        plans.append(
            {
                "stage": stage,
                "plan": plan.state,
                "spec": folder.fingerprint,
                "units_missing": len(plan.pending) if work.units else int(plan.manifest is None),
                "units_total": len(work.units) or 1,
                "note": "",
            }
        )
    return plans


def _waits(stage: StageName, waiting: list[StageName]) -> dict[str, Any]:
    note = f"waits for {', '.join(waiting)}"
    return {"stage": stage, "plan": "waits", "spec": "-", "units_missing": None, "units_total": None, "note": note}


def run_status(root: str, name: str) -> list[dict[str, Any]]:
    """State per stage from the run's record and the receipts: absent, partial or committed. Needs no data.

    Raises ConfigError when the root holds no run of that name.
    """
    files = LocalFiles(root)
    stages = RunRecord(files, name).read()["stages"]
    if not stages:
        known = [info.path.removeprefix("runs/").removesuffix(".json") for info in files.list("runs")]
        raise ConfigError(f"no run {name!r} under {root}; runs there: {', '.join(known) or 'none'}")
    return [_stage_status(files, stage, stages.get(stage)) for stage in STAGES]
