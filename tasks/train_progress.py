"""The bar of a training in the Prefect UI: one progress artifact per task run, moved at most every few seconds.

It runs in the driver's thread that takes the workers' events, so a slow server never slows a step.
"""

import time
from collections.abc import Callable, Mapping
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext

from mlcd_core.events import Report, Value, silent
from tasks.reporting import best_effort_errors, stage_logger

KEY = "mlcd-train-progress"
UPDATE_EVERY_S = 5.0


def train_progress(*, now: Callable[[], float] = time.monotonic) -> Report:
    """A reporter of the current task run's progress; ``silent`` outside one."""
    return _Bar(now) if TaskRunContext.get() else silent


class _Bar:
    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._artifact: UUID | None = None
        self._num_steps = 0
        self._updated_at = 0.0
        self._is_broken = False

    def __call__(self, event: str, values: Mapping[str, Value]) -> None:
        if event == "train_start":
            self._num_steps = int(values["num_steps"] or 0)
            self._show(int(values["first_step"] or 0))
        elif event == "train_step":
            step = int(values["step"] or 0)
            if step == self._num_steps or self._now() - self._updated_at >= UPDATE_EVERY_S:
                self._show(step)

    def _show(self, step: int) -> None:
        if self._is_broken:
            return
        percent, text = 100 * step / self._num_steps, f"step {step:,} of {self._num_steps:,}"
        self._updated_at = self._now()
        try:
            if self._artifact is None:
                artifact = create_progress_artifact(percent, key=KEY, description=text)
                assert isinstance(artifact, UUID)  # prefect types it as possibly a coroutine
                self._artifact = artifact
            else:
                update_progress_artifact(self._artifact, percent, description=text)
        except best_effort_errors() as error:
            self._is_broken = True
            stage_logger().warning("the progress of train is no longer shown: %s", error)
