"""The bar of a training, by its steps.

It runs in the driver's thread that takes the workers' events, so a slow server never slows a step.
"""

import time
from collections.abc import Callable, Mapping

from mlcd_core.events import Value
from tasks.progress_bar import Bar
from tasks.spelling import duration_text


class TrainProgress:
    """A reporter that moves a bar; the time left is by the steps since this training, or its last attempt, began."""

    def __init__(self, bar: Bar, *, now: Callable[[], float] = time.monotonic) -> None:
        self._bar = bar
        self._now = now
        self._num_steps = 0
        self._first_step, self._started_at = 0, 0.0

    def __call__(self, event: str, values: Mapping[str, Value]) -> None:
        if event == "train_start":
            self._num_steps = int(values["num_steps"] or 0)
            self._first_step, self._started_at = int(values["first_step"] or 0), self._now()
            self._show(self._first_step)
        elif event == "train_step":
            self._show(int(values["step"] or 0))

    def _show(self, step: int) -> None:
        text = f"step {step:,} of {self._num_steps:,}"
        if step > self._first_step:
            step_s = (self._now() - self._started_at) / (step - self._first_step)
            text += f", {duration_text((self._num_steps - step) * step_s)} left"
        self._bar(100 * step / self._num_steps, text)
