"""The bar of a training, by its steps.

It runs in the driver's thread that takes the workers' events, so a slow server never slows a step.
"""

from collections.abc import Mapping

from mlcd_core.events import Value
from tasks.progress_bar import Bar


class TrainProgress:
    """A reporter that moves a bar."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._num_steps = 0

    def __call__(self, event: str, values: Mapping[str, Value]) -> None:
        if event == "train_start":
            self._num_steps = int(values["num_steps"] or 0)
            self._show(int(values["first_step"] or 0))
        elif event == "train_step":
            self._show(int(values["step"] or 0))

    def _show(self, step: int) -> None:
        self._bar(100 * step / self._num_steps, f"step {step:,} of {self._num_steps:,}")
