"""The automation that marks a run whose process was killed as Crashed: python -m tasks.zombies installs it.

A process that is killed cannot say so, and a self-hosted server does not look. Runs send heartbeats where
``PREFECT_FLOWS_HEARTBEAT_FREQUENCY`` is set, as ``mlcd up`` does for its worker.
"""

from datetime import timedelta

from prefect.automations import AutomationCore
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

NAME = "mlcd: a run that says nothing any more has crashed"
HEARTBEAT = "prefect.flow-run.heartbeat"
SILENT_S = 90


def crash_silent_runs() -> AutomationCore:
    """After a heartbeat another, or the end of the run, must come in time."""
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Suspended")}
    return AutomationCore(
        name=NAME,
        description="Its process was killed, or its machine is gone. Retry it: what it committed is not made again.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *ends},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENT_S),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"no heartbeat for {SILENT_S} s: its process was killed, or its machine is gone",
            )
        ],
    )


def install() -> None:
    """Create the automation on the server of the current settings, unless it has one of that name."""
    with get_client(sync_client=True) as client:
        if not client.read_automations_by_name(NAME):
            client.create_automation(crash_silent_runs())


if __name__ == "__main__":
    install()
