"""SIGTERM while training: save first, then end as usual."""

import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from mlcd_core.errors import TrainingStopped
from tasks import train_stop
from tasks.train_stop import saving_at_sigterm


class EndedError(Exception):
    """What SIGTERM does usually, in these tests."""


@pytest.fixture(autouse=True)
def usual_course() -> Iterator[None]:
    def end(*_: object) -> None:
        raise EndedError

    before = signal.signal(signal.SIGTERM, end)
    yield
    signal.signal(signal.SIGTERM, before)


def sigterm() -> None:
    signal.raise_signal(signal.SIGTERM)


def train_through(*steps: Callable[[], object], ask: Callable[[], None], can_save: bool = True) -> None:
    """A training in which these things happen one after the other."""
    with saving_at_sigterm(ask, can_save=lambda: can_save):
        for step in steps:
            step()
        raise TrainingStopped("saved at step 3")


def test_training_that_saved_and_stopped_gives_way_to_the_usual_course() -> None:
    asked = threading.Event()
    with pytest.raises(EndedError):
        train_through(sigterm, lambda: asked.wait(10), ask=asked.set)
    assert asked.is_set()


def test_a_second_signal_ends_at_once() -> None:
    reached: list[str] = []
    with pytest.raises(EndedError):
        train_through(sigterm, lambda: reached.append("saving"), sigterm, pytest.fail, ask=lambda: None)
    assert reached == ["saving"]


def test_before_training_has_begun_nothing_is_waited_for() -> None:
    with pytest.raises(EndedError):
        train_through(sigterm, pytest.fail, ask=pytest.fail, can_save=False)


def test_workers_that_do_not_answer_are_not_waited_for_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_stop, "SAVE_S", 0.1)
    with pytest.raises(EndedError):
        train_through(sigterm, lambda: threading.Event().wait(10), pytest.fail, ask=lambda: None)


def test_an_error_without_a_signal_is_raised_as_it_is() -> None:
    with pytest.raises(TrainingStopped, match="saved at step 3"):
        train_through(ask=pytest.fail)


def test_without_a_signal_nothing_happens_and_the_handler_is_put_back() -> None:
    usual = signal.getsignal(signal.SIGTERM)
    with saving_at_sigterm(lambda: None, can_save=lambda: True):
        assert signal.getsignal(signal.SIGTERM) is not usual
    assert signal.getsignal(signal.SIGTERM) is usual
