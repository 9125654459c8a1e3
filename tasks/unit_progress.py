"""How far a stage of units is: an event per unit with rates, the time left and what is waited for, and a bar.

Rates are of the last minute: the start of workers, and what was slow an hour ago, say nothing about the time left.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlcd_core.events import Report, Value
from tasks.progress_bar import Bar
from tasks.spelling import duration_text

RECENT_S = 60.0
# the phases of a unit, by what its worker waits for in them
WAITS = {"read": "storage", "commit": "storage", "decode": "decode", "model": "model"}


@dataclass(frozen=True)
class _Ended:
    """A unit that ended: when, its rows, and its seconds by what was waited for."""

    at: float
    rows: int
    waits: Mapping[str, float] = field(default_factory=dict)


class UnitProgress:
    """Turns what each unit returned (``rows``, and maybe ``seconds`` by phase and ``device``) into events."""

    def __init__(
        self,
        report: Report,
        *,
        num_units: int,
        num_rows: int,
        now: Callable[[], float] = time.monotonic,
        bar: Bar | None = None,
    ) -> None:
        self._report = report
        self._num_units = num_units
        self._num_rows = num_rows
        self._now = now
        self._bar = bar
        self._done = 0
        self._rows = 0
        # the first entry is where the window begins, its rows lie before it
        self._recent = deque([_Ended(now(), 0)])

    def __call__(self, values: Mapping[str, Any]) -> None:
        """Take one unit and tell."""
        ended = _Ended(self._now(), int(values["rows"]), _by_wait(values.get("seconds", {})))
        self._done += 1
        self._rows += ended.rows
        self._recent.append(ended)
        while len(self._recent) > 2 and ended.at - self._recent[1].at > RECENT_S:
            self._recent.popleft()
        rate = self._rate()
        left_s = (self._num_rows - self._rows) / rate if rate else None
        event: dict[str, Value] = {
            "done": self._done,
            "total": self._num_units,
            "rows": self._rows,
            "rows_per_s": rate,
            "eta_s": left_s,
            "device": values.get("device"),
            **self._shares(),
        }
        self._report("unit", event)
        if self._bar is not None:
            text = f"{self._done:,} of {self._num_units:,} units"
            if rate:
                text += f", {rate:,.0f} rows/s, {duration_text((self._num_rows - self._rows) / rate)} left"
            self._bar(100 * self._done / self._num_units, text)

    def _rate(self) -> float | None:
        seconds = self._recent[-1].at - self._recent[0].at
        rows = sum(ended.rows for ended in self._recent) - self._recent[0].rows
        return rows / seconds if seconds > 0 else None

    def _shares(self) -> dict[str, Value]:
        """Of the seconds of recent units, what part was waited for storage, decode and model."""
        waits: dict[str, float] = {}
        for ended in self._recent:
            for what, seconds in ended.waits.items():
                waits[what] = waits.get(what, 0.0) + seconds
        total = sum(waits.values())
        return {f"{what}_share": seconds / total for what, seconds in waits.items()} if total else {}


def _by_wait(seconds: Mapping[str, float]) -> dict[str, float]:
    waits: dict[str, float] = {}
    for phase, spent in seconds.items():
        waits[WAITS[phase]] = waits.get(WAITS[phase], 0.0) + spent
    return waits
