"""How fast the units of a stage are done, seen from its events: what a later plan needs to know of this run."""

import time
from collections.abc import Callable, Mapping

from mlcd_core.events import Report, Value


class WorkClock:
    """A reporter that notes when units ended, and passes events on.

    An event ``unit`` carries ``rows`` done so far; ``measured``, which is for nobody else, ``work`` and the ``work_s``
    it took.
    """

    def __init__(self, report: Report, *, now: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._now = now
        self._started = now()
        self._ended: list[tuple[float, float]] = []
        self._measured: Mapping[str, Value] = {}

    def __call__(self, event: str, values: Mapping[str, Value]) -> None:
        if event == "unit":
            self._ended = [*self._ended[:1], (self._now(), float(values["rows"] or 0))]
        elif event == "measured":
            self._measured = values
            return
        self._report(event, values)

    def timing(self) -> dict[str, Value]:
        """``seconds`` since the beginning, and where it was seen the ``work`` (rows) done in ``work_s``."""
        timing: dict[str, Value] = {"seconds": round(self._now() - self._started, 3), **self._measured}
        if len(self._ended) == 2:
            (first_s, first), (last_s, last) = self._ended
            timing |= {"work": last - first, "work_s": round(last_s - first_s, 3)}
        return timing
