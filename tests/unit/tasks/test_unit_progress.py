"""Progress of units: recent rates, the time left, what is waited for, and a bar that never fails a stage."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import UUID

import httpx
import prefect.artifacts
import pytest

from tasks import reporting
from tasks.progress_bar import PROGRESS, PrefectBar, stage_bar
from tasks.unit_progress import UnitProgress


class Told:
    """A reporter that keeps the events, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.events: list[Mapping[str, Any]] = []
        self.time = 0.0

    def __call__(self, event: str, values: Mapping[str, Any]) -> None:
        assert event == "unit"
        self.events.append(values)

    def now(self) -> float:
        return self.time


@pytest.fixture
def told() -> Told:
    return Told()


def progress(told: Told, *, units: int, rows: int, bar: Any = None) -> Callable[..., None]:
    watched = UnitProgress(told, num_units=units, num_rows=rows, now=told.now, bar=bar)

    def end(at: float, rows: int, **values: Any) -> None:
        told.time = at
        watched({"rows": rows, **values})

    return end


def test_each_unit_tells_how_much_is_done_and_left(told: Told) -> None:
    end = progress(told, units=3, rows=300)
    end(10, 100, device="cpu")
    end(15, 100, device="cpu")
    end(20, 100, device="cpu")
    assert [(event["done"], event["total"], event["rows"]) for event in told.events] == [
        (1, 3, 100),
        (2, 3, 200),
        (3, 3, 300),
    ]
    assert [event["rows_per_s"] for event in told.events] == pytest.approx([10, 200 / 15, 15])
    assert [event["eta_s"] for event in told.events] == pytest.approx([20, 7.5, 0])
    assert {event["device"] for event in told.events} == {"cpu"}


def test_the_rate_is_that_of_the_last_minute(told: Told) -> None:
    end = progress(told, units=100, rows=100_000)
    end(1_000, 10)  # workers started, storage was slow
    for second in range(1_010, 1_200, 10):
        end(second, 500)
    assert told.events[-1]["rows_per_s"] == pytest.approx(50, rel=0.2)


def test_a_unit_longer_than_a_minute_has_a_rate_too(told: Told) -> None:
    end = progress(told, units=3, rows=3_000)
    end(500, 1_000)
    end(1_000, 1_000)
    assert told.events[-1]["rows_per_s"] == pytest.approx(2)


def test_shares_of_waiting_are_by_what_was_waited_for(told: Told) -> None:
    end = progress(told, units=2, rows=20)
    end(1, 10, seconds={"read": 1.0, "decode": 4.0, "model": 2.0, "commit": 1.0})
    end(2, 10, seconds={"read": 0.0, "decode": 0.0, "model": 8.0, "commit": 0.0})
    shares = {name: told.events[-1][f"{name}_share"] for name in ("storage", "decode", "model")}
    assert shares == pytest.approx({"storage": 2 / 16, "decode": 4 / 16, "model": 10 / 16})


def test_without_seconds_there_are_no_shares(told: Told) -> None:
    progress(told, units=1, rows=10)(1, 10)
    assert not [name for name in told.events[0] if name.endswith("_share")]


def test_the_bar_gets_percent_and_words(told: Told) -> None:
    shown: list[tuple[float, str]] = []
    end = progress(told, units=2, rows=20, bar=lambda percent, text: shown.append((percent, text)))
    end(10, 10)
    end(20, 10)
    assert shown == [(50, "1 of 2 units, 1 rows/s, 10 s left"), (100, "2 of 2 units, 1 rows/s, 0 s left")]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What a server gets."""
    got: list[float] = []

    def create(progress: float, **_: object) -> UUID:
        got.append(progress)
        return UUID(int=0)

    monkeypatch.setattr(prefect.artifacts, "create_progress_artifact", create)
    monkeypatch.setattr(prefect.artifacts, "update_progress_artifact", lambda _, progress, **__: got.append(progress))
    return got


def test_the_bar_moves_when_seconds_have_passed_and_at_the_end(server: list[float]) -> None:
    times = iter([0.0, 1, 4.9, 5, 6, 7])
    bar = PrefectBar("key", now=lambda: next(times))
    for percent in (10, 20, 30, 40, 50, 100):
        bar(percent, "")
    assert server == [10, 40, 100]


def test_outside_a_task_run_the_bar_is_lines_of_the_log_that_only_a_job_shows(caplog: pytest.LogCaptureFixture) -> None:
    times = iter([0.0, 1, 5, 6])
    bar = stage_bar(now=lambda: next(times))
    with caplog.at_level(PROGRESS, "mlcd"):
        for percent in (10, 20, 30, 100):
            bar(percent, f"{percent} of 100 units")
    assert PROGRESS < logging.INFO
    assert caplog.messages == ["10.0 10 of 100 units", "30.0 30 of 100 units", "100.0 100 of 100 units"]


def test_a_server_that_is_gone_is_asked_again_after_a_minute_and_by_nobody_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def fail(_: float, *, key: str, **__: object) -> UUID:
        asked.append(key)
        raise httpx.ConnectError("no server")

    monkeypatch.setattr(prefect.artifacts, "create_progress_artifact", fail)
    monkeypatch.setattr(reporting.SERVER, "gone_until", 0.0)
    times = iter(range(0, 1000, 10))
    one, other = (PrefectBar(key, now=lambda: next(times)) for key in ("one", "other"))
    one(10, "")
    one(20, "")
    other(10, "")
    assert asked == ["one"]
    assert [record.getMessage() for record in caplog.records] == [
        "one is not shown in Prefect, nor is anything else for 60 s: no server"
    ]
    monkeypatch.setattr(reporting.SERVER, "gone_until", time.monotonic() - 1)
    other(20, "")
    assert asked == ["one", "other"]
