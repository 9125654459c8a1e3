"""The log of a training: JSON lines to read with anything, and TensorBoard files of the same numbers.

    {folder}/train/{spec12}/{input12}.jsonl     one record a line: event, wall time, values
    {folder}/train/{spec12}/{input12}/events.*  scalars by step, one TensorBoard run

It is appended to. A training that goes on from a link repeats the steps after it: a reader of the JSON lines takes the
last record of a step, and TensorBoard drops the earlier ones itself. What is shown only helps, so a disk that cannot be
written ends the log with a warning, not the training.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlcd_core.events import Report, Value
from tasks.reporting import stage_logger


@contextmanager
def train_log(folder: Path, name: str, *, now: Callable[[], float] = time.time) -> Iterator[Report]:
    """A reporter that writes every ``train_*`` event to ``folder``; nothing is made before the first one."""
    writer = _Writer(folder, name, now)
    try:
        yield writer
    finally:
        writer.close()


class _Writer:
    def __init__(self, folder: Path, name: str, now: Callable[[], float]) -> None:
        self._folder = folder
        self._name = name
        self._now = now
        self._is_broken = False
        self._scalars: Any = None  # a SummaryWriter, once training has started

    def __call__(self, event: str, values: Mapping[str, Value]) -> None:
        if self._is_broken or not event.startswith("train_"):
            return
        try:
            self._write_line(event, values)
            if event == "train_start":
                self._open_scalars(values)
            elif event == "train_step":
                self._write_scalars(values)
        except OSError as error:
            self._is_broken = True
            stage_logger().warning("the log of the training ends here, %s cannot be written: %s", self._folder, error)

    def close(self) -> None:
        """Write what is buffered."""
        if self._scalars is not None:
            self._scalars.close()

    def _write_line(self, event: str, values: Mapping[str, Value]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{self._name}.jsonl").open("a") as lines:
            lines.write(json.dumps({"time": self._now(), "event": event, **values}) + "\n")

    def _open_scalars(self, values: Mapping[str, Value]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        first_step = values["first_step"]
        assert isinstance(first_step, int)
        self.close()
        self._scalars = SummaryWriter(self._folder / self._name, purge_step=first_step + 1)

    def _write_scalars(self, values: Mapping[str, Value]) -> None:
        for key, value in values.items():
            if isinstance(value, int | float) and key != "step":
                self._scalars.add_scalar(f"train/{key}", value, values["step"], walltime=self._now())
