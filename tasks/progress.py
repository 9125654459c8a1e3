"""Progress from worker processes to the flow: workers push events to a small Ray actor, the driver drains it."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mlcd_core.events import Report, Value

POLL_S = 1.0


class EventBoard:
    """Body of the Ray actor that holds events until the driver takes them, and a wish of the driver's to stop."""

    def __init__(self) -> None:
        self._events: list[tuple[str, dict[str, Value]]] = []
        self._is_stop_asked = False

    def push(self, event: str, values: dict[str, Value]) -> None:
        """Append one event."""
        self._events.append((event, values))

    def drain(self) -> list[tuple[str, dict[str, Value]]]:
        """Take everything that came since the last call, in order."""
        events, self._events = self._events, []
        return events

    def ask_stop(self) -> None:
        """Ask the workers to save and stop."""
        self._is_stop_asked = True

    def is_stop_asked(self) -> bool:
        """Whether the workers should save and stop."""
        return self._is_stop_asked


class RemoteReport:
    """A ``Report`` for worker processes: sends without waiting, so it cannot hold up the work."""

    def __init__(self, board: Any) -> None:  # a Ray actor handle has no static type
        self.board = board

    def __call__(self, event: str, values: Mapping[str, Value]) -> None:
        self.board.push.remote(event, dict(values))


@contextmanager
def forwarded_events(report: Report) -> Iterator[RemoteReport]:
    """Give workers a reporter whose events reach ``report`` in this process, about once a second."""
    import ray

    board = ray.remote(num_cpus=0)(EventBoard).remote()
    stop = threading.Event()

    def drain() -> None:
        for event, values in ray.get(board.drain.remote()):
            report(event, values)

    def poll() -> None:
        while not stop.wait(POLL_S):
            drain()

    thread = threading.Thread(target=_in_run_context(poll), daemon=True)
    thread.start()
    try:
        yield RemoteReport(board)
    finally:
        stop.set()
        thread.join()
        drain()
        ray.kill(board)


def _in_run_context(function: Callable[[], None]) -> Callable[[], None]:
    """Carry the Prefect run context into the thread, so that its log lines belong to the task run."""
    import contextvars

    context = contextvars.copy_context()
    return lambda: context.run(function)
