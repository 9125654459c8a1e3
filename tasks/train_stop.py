"""SIGTERM while training: the workers save a link first, then the run ends as any other run does.

A cancelled flow and a machine that is taken away both send SIGTERM and leave some seconds. The driver sets a flag on
the event board, the loop asks for it at every step, saves and raises TrainingStopped. A second signal, or workers
that do not answer in ``SAVE_S``, end the run at once; what was saved before stands.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tasks.sigterm import replace_sigterm_handler

SAVE_S = 20.0  # Prefect kills a cancelled run 30 s after SIGTERM
ASK_EVERY_S = 0.5


class RemoteStop:
    """``stop`` of the loop on a worker: asks the board now and then, and never waits for the answer."""

    def __init__(self, board: Any) -> None:  # a Ray actor handle has no static type
        self._board = board
        self._answer: Any = None  # the call under way
        self._next_s = 0.0
        self._is_asked = False

    def __call__(self) -> bool:
        """Whether training was asked to stop, as far as this process has heard."""
        import ray

        if self._answer is None:
            if not self._is_asked and time.monotonic() >= self._next_s:
                self._answer = self._board.is_stop_asked.remote()
        elif ray.wait([self._answer], timeout=0)[0]:
            self._is_asked = ray.get(self._answer)
            self._answer, self._next_s = None, time.monotonic() + ASK_EVERY_S
        return self._is_asked


@contextmanager
def saving_at_sigterm(ask: Callable[[], None], *, can_save: Callable[[], bool]) -> Iterator[None]:
    """Within: the first SIGTERM calls ``ask`` in a thread, and takes its usual course when the block ends.

    It takes its usual course at once when ``can_save()`` is false, at a second signal, and after ``SAVE_S``. An error
    that ends the block after ``ask`` gives way to that course. Outside the main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked, ended = threading.Event(), threading.Event()

    def ask_and_wait() -> None:
        try:
            ask()
            ended.wait(SAVE_S)
        finally:  # also where nobody could be asked
            if not ended.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        del number, frame
        if asked.is_set() or not can_save():
            replace_sigterm_handler(usual)
            signal.raise_signal(signal.SIGTERM)
        else:
            asked.set()
            # not here: the signal may have come inside a call of Ray
            threading.Thread(target=ask_and_wait, daemon=True).start()

    usual = replace_sigterm_handler(on_sigterm)
    try:
        yield
    finally:
        ended.set()
        replace_sigterm_handler(usual)
        if asked.is_set():
            signal.raise_signal(signal.SIGTERM)
