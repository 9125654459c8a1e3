"""``plan``: what a run would do. ``status``: what a run has made. Only a probe that is asked for starts anything."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlcd_core.config import SPECS, Config, stage_spec
from mlcd_core.errors import ConfigError
from mlcd_core.estimate import PAPER_IMAGES, estimate_clustering
from mlcd_core.identity import fingerprint, short
from mlcd_core.images.embedder import embedding_dim
from mlcd_core.specs import STAGES, ClusterSpec, StageName
from mlcd_core.store import Chain, Files, Manifest, StageFolder, open_files
from mlcd_core.store.claims import Claims
from mlcd_core.store.holder import is_gone
from tasks.costs import Cost, plan_costs, run_size
from tasks.pin import Pinned, resolve_pins
from tasks.reasons import Why, why_pending
from tasks.run import Request, Run, open_run, read_settings
from tasks.run_record import RunRecord
from tasks.stage import Manner, plan_stage
from tasks.tower_estimates import estimate_towers
from tasks.train import check_train
from tasks.work import UPSTREAM, stage_work

PAPER = "paper"
HOLDER_SHOWN = ("run", "host", "pid", "since")


def plan_run(
    request: Request,
    selected: Sequence[StageName] = STAGES,
    manner: Manner | None = None,
    *,
    num_rows: int | None = None,
    with_probe: bool = False,
) -> dict[str, Any]:
    """``{"stages": [...], "estimate": {...}}``: what a run would do, and what its clustering and its towers cost.

    num_rows: rows to estimate for; those of the data when None. Without data nothing is looked up, and ``paper`` is
    estimated for the paper's images. with_probe: run all stages on a sample first, for their cost. Where nothing that
    is selected clusters, labels or trains, the estimate is None.
    Raises ConfigError when there is neither data nor a number of rows, or only a pin; and as ``probe``.
    """
    if num_rows is not None and num_rows < 1:
        raise ConfigError(f"rows is {num_rows}; expected the number of images, 1 or more")
    if request.data:
        run = open_run(request)
        pinned = resolve_pins(run)
        if "train" in selected:
            check_train(run)
        num_rows = num_rows or sum(shard.rows for shard in run.shards)
        counts_centroids = not {"cluster", "label", "train"}.isdisjoint(selected)
        estimate = _estimate(run.config, num_rows, pinned.get("cluster")) if counts_centroids else None
        every = plan_stages(run, pinned, manner, selected=selected)
        stages = [stage for stage in every if stage["stage"] in selected]
        for stage, cost in zip(stages, _costs(run, stages, num_rows, estimate, with_probe), strict=True):
            stage["cost"] = cost and asdict(cost)
        return {"stages": stages, "estimate": estimate}
    if request.pin:
        raise ConfigError("a pin is given without data, so nothing could be labelled; give --data")
    if num_rows is None:
        if request.preset != PAPER:
            raise ConfigError("there is neither data nor a number of rows; give --data, or --rows for an estimate")
        num_rows = PAPER_IMAGES
    return {"stages": [], "estimate": _estimate(read_settings(request), num_rows, None)}


def _costs(
    run: Run,
    stages: Sequence[Mapping[str, Any]],
    num_rows: int,
    estimate: Mapping[str, Any] | None,
    with_probe: bool,
) -> list[Cost | None]:
    # without an estimate no stage asks for them
    num_centroids, dim = (estimate["num_centroids"], estimate["dim"]) if estimate else (num_rows, 0)
    size = run_size(run, num_rows=num_rows, num_centroids=num_centroids)
    if not with_probe or all(stage["plan"] == "hit" for stage in stages):
        return plan_costs(run, stages, size, run.files, "a run under this root", dim=dim)
    from tasks.probe import probe  # it runs stages, and planning by itself needs no Prefect

    with tempfile.TemporaryDirectory(prefix="mlcd-probe-") as folder:
        probed = probe(run, Path(folder), num_centroids=num_centroids)
        return plan_costs(run, stages, size, probed, "the probe", dim=dim)


def _estimate(config: Config, num_rows: int, pinned: Pinned | None) -> dict[str, Any]:
    cluster, cluster_spec = config.cluster, stage_spec(config, "cluster")
    assert isinstance(cluster_spec, ClusterSpec)
    num_centroids = pinned.manifest.parts[0].rows if pinned else cluster_spec.centroids_of(num_rows, "rows")
    clustering = estimate_clustering(
        num_rows=num_rows,
        dim=embedding_dim(config.embed, config.embed.source),
        num_centroids=num_centroids,
        iterations=0 if pinned else cluster.iterations,
        num_labels=config.label.num_labels,
        workers=cluster.workers,
        recipe=cluster.recipe,
    )
    towers = estimate_towers(config, num_rows=num_rows, num_classes=num_centroids)
    return {**asdict(clustering), "towers": [asdict(tower) for tower in towers]}


def plan_stages(
    run: Run,
    pinned: Mapping[StageName, Pinned],
    manner: Manner | None = None,
    *,
    selected: Sequence[StageName] = STAGES,
) -> list[dict[str, Any]]:
    """hit, partial or miss per stage; ``waits`` where an upstream digest is not known yet. A pinned stage is a hit.

    selected: what would run; a stage that waits for another one says so.
    Of a stage that is not committed also the nearest result under the root, and how it differs (``Why``).
    """
    manner = manner or Manner()
    committed: dict[StageName, Manifest] = {}
    record = RunRecord(run.files, run.request.name).read()["stages"]
    plans = []
    for stage in STAGES:
        if stage in pinned:
            committed[stage] = pinned[stage].manifest
            plans.append(_entry(stage, "hit", pinned[stage].manifest.spec, 0, 1, pinned[stage].note))
            continue
        waiting = [upstream for upstream in UPSTREAM[stage] if upstream not in committed]
        if waiting:
            missing = [upstream for upstream in waiting if upstream not in selected]
            note = f"cannot run: {', '.join(missing)} is not committed, and not selected" if missing else ""
            plans.append(_entry(stage, "waits", "-", None, None, note or f"waits for {', '.join(waiting)}"))
            continue
        work = stage_work(stage, run, committed)
        folder = StageFolder(run.files, work.spec)
        plan = plan_stage(folder, work, manner)
        if plan.manifest is not None:
            committed[stage] = plan.manifest
        pending = len(plan.pending) if work.units else int(plan.manifest is None)
        note = "is made again, as forced" if stage in manner.force else work.note
        entry = _entry(stage, plan.state, folder.fingerprint, pending, len(work.units) or 1, note)
        if plan.manifest is None:
            entry |= asdict(why_pending(run.files, work, record.get(stage, {}).get("spec", "")))
        plans.append(entry)
    return plans


def _entry(
    stage: StageName, state: str, spec: str, missing: int | None, total: int | None, note: str
) -> dict[str, Any]:
    return {
        "stage": stage,
        "plan": state,
        "spec": spec,
        "units_missing": missing,
        "units_total": total,
        "note": note,
        "cost": None,
        **asdict(Why()),
    }


def run_status(root: str, name: str) -> list[dict[str, Any]]:
    """State per stage from the run's record, receipts and leases: absent, partial, running or committed.

    Needs no data. running: a process holds the stage's lease (``holder``), and is not known to have ended.

    Raises ConfigError when the root holds no run of that name.
    """
    files = open_files(root)
    stages = RunRecord(files, name).read()["stages"]
    if not stages:
        known = [info.path.removeprefix("runs/").removesuffix(".json") for info in files.list("runs")]
        raise ConfigError(f"no run {name!r} under {root}; runs there: {', '.join(known) or 'none'}")
    return [_stage_status(files, stage, stages.get(stage)) for stage in STAGES]


def _stage_status(files: Files, stage: StageName, entry: dict[str, Any] | None) -> dict[str, Any]:
    status: dict[str, Any] = {
        "stage": stage,
        "spec": None,
        "input": None,
        "state": "absent",
        "units_done": 0,
        "units_total": 0,
        "manifest_digest": None,
        "uri": "",
        "pin": None,
        "holder": None,
    }
    if entry is None:
        return status
    prefix = f"{stage}/{short(entry['spec'])}"
    status |= {"spec": entry["spec"], "input": fingerprint(entry["inputs"]), "uri": files.uri(prefix)}
    status |= {"pin": entry.get("pin")}
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
    claim = Claims(files, prefix, fingerprint(entry["inputs"])).newest()
    holder = claim.holder if claim and not claim.released and not is_gone(claim.holder) else None
    state = "running" if holder else "partial" if done else "absent"
    status |= {"state": state, "units_done": done, "units_total": total}
    return status | ({"holder": {key: getattr(holder, key) for key in HOLDER_SHOWN}} if holder else {})
