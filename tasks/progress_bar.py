"""A bar in the Prefect UI: one progress artifact, moved at most every few seconds and at the end."""

import time
from collections.abc import Callable
from uuid import UUID

from tasks.reporting import show_best_effort

UPDATE_EVERY_S = 5.0


class PrefectBar:
    """Shows ``percent`` and a text under ``key``, as long as there is a server. name: the bar, for people."""

    def __init__(self, key: str, *, name: str = "", now: Callable[[], float] = time.monotonic) -> None:
        self._key = key
        self._name = name or key
        self._now = now
        self._artifact: UUID | None = None
        self._shown_at = -UPDATE_EVERY_S

    def __call__(self, percent: float, text: str) -> None:
        now = self._now()
        if percent == 100 or now - self._shown_at >= UPDATE_EVERY_S:
            self._shown_at = now
            show_best_effort(self._name, lambda: self._show(percent, text))

    def _show(self, percent: float, text: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if self._artifact is None:
            artifact = create_progress_artifact(percent, key=self._key, description=text)
            assert isinstance(artifact, UUID)  # prefect types it as possibly a coroutine
            self._artifact = artifact
        else:
            update_progress_artifact(self._artifact, percent, description=text)
