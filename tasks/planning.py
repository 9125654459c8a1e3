"""``plan``: what a run would do. ``status``: what a run has made. Neither starts anything."""

import json
from typing import Any

from mlcd_core.config import SPECS
from mlcd_core.errors import ConfigError
from mlcd_core.identity import fingerprint, short
from mlcd_core.specs import STAGES, StageName
from mlcd_core.store import Chain, LocalFiles, Manifest, StageFolder
from tasks.run import Run
from tasks.run_record import RunRecord
from tasks.work import UPSTREAM, stage_work


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


def _stage_status(files: LocalFiles, stage: StageName, entry: dict[str, Any] | None) -> dict[str, Any]:
    status: dict[str, Any] = {
        "stage": stage,
        "spec": None,
        "input": None,
        "state": "absent",
        "units_done": 0,
        "units_total": 0,
        "manifest_digest": None,
        "uri": "",
    }
    if entry is None:
        return status
    prefix = f"{stage}/{short(entry['spec'])}"
    status |= {"spec": entry["spec"], "input": fingerprint(entry["inputs"]), "uri": files.uri(prefix)}
    spec_json = files.read(f"{prefix}/spec.json")
    if spec_json is None:
        return status
    folder = StageFolder(files, SPECS[stage].model_validate(json.loads(spec_json)["spec"]))
    plan = folder.plan(entry["inputs"], entry["units"])
    total = entry["last_number"] or len(entry["units"])
    if plan.manifest is not None:
        digest = plan.manifest.digest
        return status | {"state": "committed", "units_done": total, "units_total": total, "manifest_digest": digest}
    done = len(plan.done)
    if entry["last_number"]:
        newest = Chain(folder, entry["inputs"], plan.attempt, entry["last_number"]).newest()
        done = newest.number if newest else 0
    return status | {"state": "partial" if done else "absent", "units_done": done, "units_total": total}
