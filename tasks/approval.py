"""The gate before a stage: the run suspends, shows what was made so far, and goes on or ends as a person decides.

A suspended run has no process and costs nothing. Resumed, it begins anew: committed stages are cached, and the gate
finds the answer. An answer belongs to the stage, its settings and what it reads, so a retry of the run is not asked
again, and a run whose clusters have changed since is.
"""

from collections.abc import Collection
from typing import Literal
from uuid import UUID, uuid4

from prefect.client.orchestration import get_client
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from pydantic import Field

from mlcd_core.errors import ConfigError, RejectedError
from tasks.artifacts import sizes_picture
from tasks.reporting import stage_logger
from tasks.run import check_stage
from tasks.tables import cluster_table, stage_note
from tasks.work import Committed

_MOST_INPUTS = 1_000  # of one question: three each time that it is asked


class Approval(RunInput):
    """What a person decides on the stage that the run has stopped before."""

    # a choice without a default: V1 of the UI sends a switch that nobody touched as off
    decision: Literal["approve", "reject"] = Field(
        description="approve: the stage runs. reject: the run ends as failed, and nothing of the stage runs."
    )
    note: str = Field("", description="Why; it is written to the log of the run.")


def check_approval(stage: str, selected: Collection[str]) -> None:
    """Raise ConfigError for a stage that no run, or not this one, can stop before; "" is none at all."""
    check_stage("approve_before", stage)
    if stage and deployment.id is None:
        raise ConfigError(
            f"approve_before is {stage!r}, but this run belongs to no deployment, so nothing could go on with it after "
            "the answer; start it with prefect deployment run 'pipeline/local', or leave approve_before out"
        )
    if stage and stage not in selected:
        raise ConfigError(
            f"approve_before is {stage!r}, but only {', '.join(selected)} would run; expected it among them: widen "
            "only, from_stage or until, or leave approve_before out"
        )


def require_approval(stage: str, question: str, report: str) -> None:
    """Return when the question was answered with yes; where it was not answered yet, suspend the run.

    question: letters, digits and dashes that stand for what is asked. report: what the form shows, as markdown.
    Raises RejectedError when it was answered with no, also in a retry of the run.
    """
    form = Approval.with_initial_data(description=report)
    # a run that was cancelled while it was suspended asks again, and Prefect takes no key twice
    answer = _answer(question) or suspend_flow_run(wait_for_input=form, key=f"{question}-{uuid4().hex}")
    said = f": {answer.note}" if answer.note else ""
    if answer.decision == "reject":
        raise RejectedError(
            f"{stage} was not approved{said}; nothing of it was run. A retry of this run ends the same way: start a "
            "new one with other settings, or to be asked again"
        )
    stage_logger().info("%s was approved%s", stage, said)


def approval_report(stage: str, run_name: str, committed: Committed) -> str:
    """What the form shows, as markdown: the stages so far, and the clusters where there are any.

    Lists, for the dialog is narrow and cuts tables off.
    """
    lines = [f"Shall **{stage}** of the run **{run_name}** run?", ""]
    lines += [f"- **{name}**: {made.rows:,} rows, {stage_note(made)}" for name, made in committed.items()]
    if "cluster" in committed:
        clusters = committed["cluster"]
        lines += [f"- {name}: {value}" for name, value in cluster_table(clusters)]
        lines += ["", sizes_picture(clusters)]
    if "label" in committed:
        lines += ["", "The artifact mlcd-label shows images of some clusters."]
    return "\n".join(lines)


def _answer(question: str) -> Approval | None:
    """What was answered in this flow run; Prefect forgets at a retry that it has asked, but not the answer."""
    with get_client(sync_client=True) as client:
        given = client.filter_flow_run_input(UUID(flow_run.id), f"suspended-{question}", _MOST_INPUTS, set())
    for one in given:
        if one.key.endswith("-response"):
            return Approval.load_from_flow_run_input(one)
    return None
