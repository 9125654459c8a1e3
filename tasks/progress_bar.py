"""A bar in the Prefect UI: one progress artifact, moved at most every few seconds and at the end."""

import time
from collections.abc import Callable
from uuid import UUID

from tasks.reporting import best_effort_errors, stage_logger

UPDATE_EVERY_S = 5.0


class PrefectBar:
    """Shows ``percent`` and a text under ``key``; a server that fails is asked once. name: the bar, for people."""

    def __init__(self, key: str, *, name: str = "", now: Callable[[], float] = time.monotonic) -> None:
        self._key = key
        self._name = name or key
        self._now = now
        self._artifact: UUID | None = None
        self._shown_at = -UPDATE_EVERY_S
        self._is_broken = False

    def __call__(self, percent: float, text: str) -> None:
        now = self._now()
        if self._is_broken or (percent < 100 and now - self._shown_at < UPDATE_EVERY_S):
            return
        self._shown_at = now
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        try:
            if self._artifact is None:
                artifact = create_progress_artifact(percent, key=self._key, description=text)
                assert isinstance(artifact, UUID)  # prefect types it as possibly a coroutine
                self._artifact = artifact
            else:
                update_progress_artifact(self._artifact, percent, description=text)
        except best_effort_errors() as error:
            self._is_broken = True
            stage_logger().warning("%s is no longer shown: %s", self._name, error)
