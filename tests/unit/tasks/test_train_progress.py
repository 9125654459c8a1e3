"""The progress bar of a training: moved now and then, always at the end, and never a reason to fail."""

from collections.abc import Iterable
from uuid import UUID

import httpx
import prefect.artifacts
import pytest

from tasks import reporting
from tasks.progress_bar import PrefectBar
from tasks.train_progress import TrainProgress


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What a server gets."""
    shown: list[float] = []

    def create(progress: float, **_: object) -> UUID:
        shown.append(progress)
        return UUID(int=0)

    monkeypatch.setattr(prefect.artifacts, "create_progress_artifact", create)
    monkeypatch.setattr(prefect.artifacts, "update_progress_artifact", lambda _, progress, **__: shown.append(progress))
    return shown


def train(times: Iterable[float], *, first_step: int = 0) -> None:
    """Ten steps, the clock being asked for each."""
    clock = iter(times)
    bar = TrainProgress(PrefectBar("train", name="the progress of train", now=lambda: next(clock)))
    bar("train_start", {"first_step": first_step, "num_steps": 10})
    for step in range(first_step + 1, 11):
        bar("train_step", {"step": step})


def test_it_moves_when_seconds_have_passed_and_at_the_end(shown: list[float]) -> None:
    # the clock is read once more for each that is shown
    train([0, 1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 10.5])
    assert shown == [0, 50, 100]


def test_it_begins_where_training_goes_on(shown: list[float]) -> None:
    train([0] * 9, first_step=7)
    assert shown == [70, 100]


def test_it_says_how_long_is_left_at_the_speed_since_training_began() -> None:
    texts: list[str] = []
    times = iter([100.0, 110.0, 120.0, 130.0])
    progress = TrainProgress(lambda _, text: texts.append(text), now=lambda: next(times))
    progress("train_start", {"first_step": 1000, "num_steps": 1600})
    for step in (1100, 1400, 1600):
        progress("train_step", {"step": step})
    assert texts == [
        "step 1,000 of 1,600",
        "step 1,100 of 1,600, 50 s left",
        "step 1,400 of 1,600, 10 s left",
        "step 1,600 of 1,600, 0 s left",
    ]


def test_a_server_that_does_not_answer_is_not_asked_at_each_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(progress: float, **_: object) -> UUID:
        raise httpx.ConnectError("no server")

    monkeypatch.setattr(prefect.artifacts, "create_progress_artifact", fail)
    monkeypatch.setattr(reporting.SERVER, "gone_until", 0.0)
    train(range(0, 1000, 10))
    [record] = caplog.records
    assert record.getMessage().startswith("the progress of train is not shown in Prefect")
