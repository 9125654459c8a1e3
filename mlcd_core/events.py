"""How the core speaks while it works: it calls a reporter and knows nothing of who listens."""

from collections.abc import Mapping
from typing import Protocol

Value = float | int | str | bool | None


class Report(Protocol):
    """Receives named events with flat values, for example ``report("iteration", {"objective": 0.31})``."""

    def __call__(self, event: str, values: Mapping[str, Value]) -> None:
        """Take one event; must return quickly and never raise."""


def silent(event: str, values: Mapping[str, Value]) -> None:
    """Drop the event: the reporter of callers that do not want one."""
