"""The bar of a training in the Prefect UI, by its steps.

It runs in the driver's thread that takes the workers' events, so a slow server never slows a step.
"""

import time
from collections.abc import Callable, Mapping

from mlcd_core.events import Report, Value, silent
from tasks.progress_bar import PrefectBar
from tasks.reporting import running_task

KEY = "mlcd-train-progress"


def train_progress(*, now: Callable[[], float] = time.monotonic) -> Report:
    """A reporter of the current task run's progress; ``silent`` outside one."""
    return _Bar(now) if running_task() else silent


class _Bar:
    def __init__(self, now: Callable[[], float]) -> None:
        self._bar = PrefectBar(KEY, name="the progress of train", now=now)
        self._num_steps = 0

    def __call__(self, event: str, values: Mapping[str, Value]) -> None:
        if event == "train_start":
            self._num_steps = int(values["num_steps"] or 0)
            self._show(int(values["first_step"] or 0))
        elif event == "train_step":
            self._show(int(values["step"] or 0))

    def _show(self, step: int) -> None:
        self._bar(100 * step / self._num_steps, f"step {step:,} of {self._num_steps:,}")
