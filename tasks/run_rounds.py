"""Runs the rounds of a request one after the other, and puts what they made into one JSON object."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from prefect import tags

from mlcd_core.config import most_workers
from mlcd_core.specs import StageName
from tasks.ray_jobs import RayJobs
from tasks.ray_session import RaySession, check_ray_address, is_dashboard
from tasks.reporting import stage_logger
from tasks.rounds import check_rounds, next_round
from tasks.run import Request, Run, check_force, open_run
from tasks.run_stages import run_stages
from tasks.stage import Manner, StageOutcome
from tasks.summary import run_summary


@dataclass(frozen=True)
class Round:
    """How one round ended; ``name`` is that of its run."""

    number: int
    name: str
    outcomes: list[StageOutcome]


def run_rounds(
    request: Request, selected: list[StageName], rounds: int, manner: Manner, *, ray_address: str = ""
) -> list[Round]:
    """Run the selected stages of every round in order, all in the same manner; after a failed stage no round starts.

    ray_address: see ``RaySession``; of a dashboard, each stage with work is a job of its cluster. Raises ConfigError as
    ``check_ray_address``, ``check_rounds`` and ``check_force`` do.
    """
    check_ray_address(ray_address)
    check_rounds(request, selected, rounds)
    check_force(manner.force, selected, request)
    done: list[Round] = []
    run = open_run(request)
    with _ray_of(run, ray_address) as ray:
        for number in range(1, rounds + 1):
            if rounds > 1:
                stage_logger().info("round %d of %d is the run %s", number, rounds, run.request.name)
            # in the UI the stages of all rounds have the same names
            with tags(f"round-{number}") if rounds > 1 else nullcontext():
                outcomes = run_stages(run, selected, ray, manner)
            done.append(Round(number, run.request.name, outcomes))
            if number == rounds or any(outcome.result == "failed" for outcome in outcomes):
                break
            [trained] = [outcome.manifest for outcome in outcomes if outcome.stage == "train"]
            assert trained is not None, "train was selected, did not fail, and is not committed"
            run = next_round(request, number + 1, run, trained)
    return done


def _ray_of(run: Run, address: str) -> AbstractContextManager[RaySession | RayJobs]:
    if is_dashboard(address):
        return nullcontext(RayJobs(address))
    return RaySession(most_workers=most_workers(run.config), address=address)


def rounds_summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """The summary of the last round, with the stages of all rounds, and ``rounds``: the metrics of each."""
    summaries = [run_summary(done.outcomes) for done in rounds]
    return {
        **summaries[-1],
        "stages": [
            {**stage, "round": done.number}
            for done, summary in zip(rounds, summaries, strict=True)
            for stage in summary["stages"]
        ],
        "rounds": [
            {"round": done.number, "name": done.name, "metrics": summary["metrics"], "clusters": summary["clusters"]}
            for done, summary in zip(rounds, summaries, strict=True)
        ],
    }
