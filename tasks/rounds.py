"""Rounds: embed again with the tower that the round before trained, then cluster, label, train and evaluate again.

Round 1 is the run as asked for. Round n + 1 is the same run with ``embed.embedder=tower`` and the digest of round n's
train manifest, under the name ``{name}-round{n + 1}``: a run of its own, so every stage of every round is cached,
resumed and shown like any other. A round knows nothing of the rounds before but that digest.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from mlcd_core.errors import ConfigError
from mlcd_core.specs import STAGES, StageName
from mlcd_core.store import Manifest, StageFolder
from tasks.pin import resolve_pins
from tasks.planning import plan_run, plan_stages
from tasks.reasons import Why
from tasks.run import Request, Run, check_force, open_run
from tasks.stage import Manner, plan_stage
from tasks.work import stage_work


def check_rounds(request: Request, selected: Sequence[StageName], rounds: int) -> None:
    """Raise ConfigError for a number of rounds that cannot be meant with these stages and pins."""
    if rounds < 1:
        raise ConfigError(f"rounds is {rounds}; expected 1 or more")
    if rounds > 1 and not set(STAGES[: STAGES.index("train") + 1]) <= set(selected):
        raise ConfigError(
            f"rounds is {rounds}, but only {', '.join(selected)} would run; each round embeds, clusters, labels and "
            "trains anew: select all stages up to train (--until train, or no selection at all), or leave rounds out"
        )
    if rounds > 1 and request.pin:
        raise ConfigError(
            f"rounds is {rounds} and {', '.join(request.pin)} is pinned; pinned centroids belong to one embedder, and "
            "each round has another: leave the pin or the rounds out"
        )


def next_round(first: Request, number: int, before: Run, trained: Manifest) -> Run:
    """Open round ``number`` of a request: it embeds with the tower that the round ``before`` has trained."""
    embed = {
        "embedder": "tower",
        "tower": trained.digest,
        "image_size": before.config.train.image_size,
        "feature": "image",  # a tower has no text
        # what the embedder of round 1 may have been given
        **dict.fromkeys(("architecture", "weights_sha256", "pretrained"), ""),
    }
    overrides = {**first.overrides, **{f"embed.{field}": value for field, value in embed.items()}}
    return open_run(replace(first, name=f"{first.name}-round{number}", overrides=overrides))


def plan_rounds(
    request: Request,
    selected: Sequence[StageName],
    rounds: int,
    manner: Manner | None = None,
    *,
    num_rows: int | None = None,
    with_probe: bool = False,
) -> dict[str, Any]:
    """``plan_run`` with the selected stages of all rounds; a round whose tower is not trained yet waits for it.

    Raises ConfigError as ``plan_run``, ``check_rounds`` and ``check_force`` do.
    """
    manner = manner or Manner()
    check_rounds(request, selected, rounds)
    check_force(manner.force, selected, request)
    plan = plan_run(request, selected, manner, num_rows=num_rows, with_probe=with_probe)
    plan["stages"] = [{**stage, "round": 1} for stage in plan["stages"]]
    if rounds > 1 and request.data:
        later = _later_rounds(request, rounds, manner)
        plan["stages"] += [stage for stage in later if stage["stage"] in selected]
    return plan


def explain_rounds(request: Request, rounds: int) -> list[dict[str, Any]]:
    """The stages of all rounds as ``plan_rounds`` has them, without what they would cost."""
    check_rounds(request, STAGES, rounds)
    run = open_run(request)
    stages = [{**stage, "round": 1} for stage in plan_stages(run, resolve_pins(run))]
    return stages + (_later_rounds(request, rounds, Manner()) if rounds > 1 else [])


def _later_rounds(request: Request, rounds: int, manner: Manner) -> list[dict[str, Any]]:
    plans: list[dict[str, Any]] = []
    run: Run | None = open_run(request)
    for number in range(2, rounds + 1):
        trained = _trained(run, manner) if run else None
        run = next_round(request, number, run, trained) if run and trained else None
        stages = plan_stages(run, {}, manner) if run else _waiting(number - 1)
        plans += [{**stage, "round": number} for stage in stages]
    return plans


def _trained(run: Run, manner: Manner) -> Manifest | None:
    """The train manifest of a run whose stages up to there are all committed, and none to be made again."""
    committed: dict[StageName, Manifest] = {}
    for stage in STAGES[: STAGES.index("train") + 1]:
        work = stage_work(stage, run, committed)
        manifest = plan_stage(StageFolder(run.files, work.spec), work, manner).manifest
        if manifest is None:
            return None
        committed[stage] = manifest
    return committed["train"]


def _waiting(number: int) -> list[dict[str, Any]]:
    entry = {"plan": "waits", "spec": "-", "units_missing": None, "units_total": None, "cost": None, **asdict(Why())}
    return [{"stage": stage, **entry, "note": f"waits for train of round {number}"} for stage in STAGES]
