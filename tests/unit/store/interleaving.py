"""Actors that share a store, and take their turns in an order drawn from a seed: one operation of the store at a time.

At any operation an actor may fall asleep for long, or die. Time is simulated, and passes a little with each operation.
"""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from mlcd_core.store import FileInfo


class MemoryFiles:
    """Objects in memory, of which leases need these operations. ``step`` is called before each."""

    def __init__(self, objects: dict[str, bytes] | None = None, step: Callable[[], None] = lambda: None) -> None:
        self.objects = {} if objects is None else objects
        self._step = step

    def read(self, path: str) -> bytes | None:
        self._step()
        return self.objects.get(path)

    def put(self, path: str, data: bytes) -> None:
        self._step()
        self.objects[path] = data

    def create(self, path: str, data: bytes) -> bool:
        self._step()
        return self.objects.setdefault(path, data) is data

    def folders(self, prefix: str) -> list[str]:
        raise NotImplementedError

    def list(self, prefix: str) -> list[FileInfo]:
        self._step()
        return [FileInfo(path, len(data)) for path, data in sorted(self.objects.items()) if path.startswith(prefix)]

    def delete(self, path: str) -> None:
        self._step()
        self.objects.pop(path, None)

    def map(self, path: str) -> None:
        raise NotImplementedError

    def sweep(self, prefix: str) -> None:
        raise NotImplementedError

    def uri(self, path: str) -> str:
        return path


class KilledError(BaseException):
    """Ends the thread of an actor that died; nothing of it is executed any more."""


@dataclass
class Actor:
    """One process. asleep_until: simulated; slept: whether it was since this was last set to False."""

    name: str
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    asleep_until: float = 0.0
    slept: bool = False
    is_dead: bool = False
    has_ended: bool = False
    error: BaseException | None = None


class World:
    """Runs actors until all have ended or died; ``check`` is called after each operation."""

    def __init__(self, seed: int, *, check: Callable[[], None], sleeps: float, deaths: float) -> None:
        self.objects: dict[str, bytes] = {}
        self.now = 0.0
        self.actors: list[Actor] = []
        self._random = random.Random(seed)
        self._back = threading.Semaphore(0)
        self._check = check
        self._sleeps, self._deaths = sleeps, deaths

    def files(self, actor: Actor) -> MemoryFiles:
        """The store, as one actor sees it."""
        return MemoryFiles(self.objects, lambda: self._give_way(actor))

    def sleep(self, actor: Actor, seconds: float) -> None:
        """Wait, as an actor that is awake does."""
        actor.asleep_until = self.now + seconds
        self._give_way(actor)

    def run(self, bodies: dict[str, Callable[[Actor], None]]) -> None:
        """Run one actor for each of these functions; raises what one raised, or ``check``."""
        self.actors = [Actor(name) for name in bodies]
        threads = [
            threading.Thread(target=self._live, args=(actor, bodies[actor.name]), daemon=True) for actor in self.actors
        ]
        for thread in threads:
            thread.start()
        try:
            while awake := [actor for actor in self.actors if not actor.has_ended and not actor.is_dead]:
                self._advance(min(awake, key=lambda actor: (actor.asleep_until > self.now, self._order(actor))))
        finally:
            for actor in self.actors:
                actor.is_dead = True
                actor.turn.release()
            for thread in threads:
                thread.join()

    def _order(self, actor: Actor) -> float:
        """Whose turn it is: any of those that are awake, else the one that wakes first."""
        return actor.asleep_until if actor.asleep_until > self.now else self._random.random()

    def _advance(self, actor: Actor) -> None:
        self.now = max(self.now, actor.asleep_until) + self._random.random()
        actor.turn.release()
        self._back.acquire()
        if actor.error is not None:
            raise actor.error
        self._check()
        if actor.asleep_until <= self.now and not actor.has_ended:
            self._disturb(actor)

    def _disturb(self, actor: Actor) -> None:
        drawn = self._random.random()
        if drawn < self._deaths:
            actor.is_dead = True
        elif drawn < self._deaths + self._sleeps:
            actor.asleep_until, actor.slept = self.now + self._random.uniform(1, 400), True

    def _live(self, actor: Actor, body: Callable[[Actor], None]) -> None:
        try:
            self._await_turn(actor)
            body(actor)
        except KilledError:
            return
        except BaseException as error:  # to be raised by the one who waits
            actor.error = error
        actor.has_ended = True
        self._back.release()

    def _give_way(self, actor: Actor) -> None:
        self._back.release()
        self._await_turn(actor)

    def _await_turn(self, actor: Actor) -> None:
        actor.turn.acquire()
        if actor.is_dead:
            raise KilledError
