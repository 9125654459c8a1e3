"""How far a stage is, as a bar in the Prefect UI: a progress artifact, moved every few seconds at most and at the end.

A job of a cluster asks no Prefect: it logs what its bar would show, and the run that follows the job moves the bar.
"""

import logging
import time
from collections.abc import Callable
from typing import Protocol
from uuid import UUID

from tasks.reporting import running_task, show_best_effort

UPDATE_EVERY_S = 5.0
# of the log; below INFO, so nobody sees it who does not ask
PROGRESS, PROGRESS_NAME = 15, "PROGRESS"


class Bar(Protocol):
    """Shows how far the work is, from 0 to 100."""

    def __call__(self, percent: float, text: str) -> None:
        """Show it; must return quickly and never raise."""
        ...


def stage_bar(*, now: Callable[[], float] = time.monotonic) -> Bar:
    """The bar of the stage that runs: in the UI inside a task run, else in the log."""
    if stage := running_task():
        return PrefectBar(f"mlcd-{stage}-progress", name=f"the progress of {stage}", now=now)
    return LoggedBar(now=now)


class PrefectBar:
    """Shows ``percent`` and a text under ``key``, as long as there is a server. name: the bar, for people."""

    def __init__(self, key: str, *, name: str = "", now: Callable[[], float] = time.monotonic) -> None:
        self._key = key
        self._name = name or key
        self._pace = _Pace(now)
        self._artifact: UUID | None = None

    def __call__(self, percent: float, text: str) -> None:
        if self._pace.is_due(percent):
            show_best_effort(self._name, lambda: self._show(percent, text))

    def _show(self, percent: float, text: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if self._artifact is None:
            artifact = create_progress_artifact(percent, key=self._key, description=text)
            assert isinstance(artifact, UUID)  # prefect types it as possibly a coroutine
            self._artifact = artifact
        else:
            update_progress_artifact(self._artifact, percent, description=text)


class LoggedBar:
    """Writes ``percent`` and the text to the log."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._pace = _Pace(now)

    def __call__(self, percent: float, text: str) -> None:
        if self._pace.is_due(percent):
            logging.getLogger("mlcd").log(PROGRESS, "%.1f %s", percent, text)


class _Pace:
    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._shown_at = -UPDATE_EVERY_S

    def is_due(self, percent: float) -> bool:
        now = self._now()
        if percent < 100 and now - self._shown_at < UPDATE_EVERY_S:
            return False
        self._shown_at = now
        return True
