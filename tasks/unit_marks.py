"""Which units have been begun and not ended: how a unit that kills its worker's process is told from its neighbours.

Ray starts a dead actor again and repeats the calls that were in it, for ever: a unit with a file that crashes a decoder
would never end. So a worker says when it begins a unit and when it has ended one, to a small actor that outlives it. A
unit that was begun and never ended is a suspect, though the unit beside it in the same process may have been the cause.
A suspect therefore runs alone in its process, and is marked only when it really begins: whoever dies alone is guilty.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

MOST_DEATHS = 3


@dataclass(frozen=True)
class Mark:
    """What is known of a unit: how often a process died with it inside, and what it said if it has ended."""

    deaths: int = 0
    outcome: str = ""


class Marks(Protocol):
    """Remembers units beyond the life of the processes that do them."""

    def look(self, unit: str) -> Mark:
        """What is known of a unit that is not running now."""
        ...

    def begin(self, unit: str) -> None:
        """Note that the unit begins now; returns when it is noted."""
        ...

    def end(self, unit: str, outcome: str) -> None:
        """Note that the unit has ended, and what it said: its call may be repeated for another unit's sake."""
        ...


class UnitMarks:
    """The marks themselves, body of a Ray actor."""

    def __init__(self) -> None:
        self._marks: dict[str, Mark] = {}

    def look(self, unit: str) -> Mark:
        return self._marks.get(unit, Mark())

    def begin(self, unit: str) -> None:
        self._marks[unit] = Mark(deaths=self.look(unit).deaths + 1)

    def end(self, unit: str, outcome: str) -> None:
        self._marks[unit] = Mark(outcome=outcome)


class RemoteMarks:
    """The marks in a Ray actor, as worker processes see them."""

    def __init__(self, actor: Any) -> None:  # a Ray actor handle has no static type
        self.actor = actor

    def look(self, unit: str) -> Mark:
        import ray

        mark: Mark = ray.get(self.actor.look.remote(unit))
        return mark

    def begin(self, unit: str) -> None:
        import ray

        ray.get(self.actor.begin.remote(unit))

    def end(self, unit: str, outcome: str) -> None:
        self.actor.end.remote(unit, outcome)  # nothing waits for it: a lost one costs a unit done twice


def start_marks() -> RemoteMarks:
    """Start the actor that holds the marks of one run of units."""
    import ray

    # without its counts a crash is only tried more often, so a lost actor is replaced, not mourned
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(UnitMarks)
    return RemoteMarks(actor.remote())


class Turns:
    """Lets units of one process run beside each other, or one alone; one that waits to be alone comes next."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._wishes = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Run beside others, but not beside one that is alone."""
        self._enter(lambda: self._wishes == 0)
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run when nothing else does."""
        with self._changed:
            self._wishes += 1
        try:
            self._enter(lambda: self._running == 0)
            try:
                yield
            finally:
                self._leave()
        finally:
            with self._changed:
                self._wishes -= 1
                self._changed.notify_all()

    def _enter(self, may_enter: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(may_enter)
            self._running += 1

    def _leave(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()
