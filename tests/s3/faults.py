"""What may happen to a request on its way to a store, and which requests it happens to."""

import random
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal


@dataclass(frozen=True)
class Fault:
    """What happens to requests whose method is ``method`` and whose key matches the pattern ``key``.

    kind:
        503, 409     answered so, not forwarded
        reset        the connection is reset, not forwarded
        silence      not forwarded; closed after ``seconds`` without an answer
        lost reply   forwarded; closed without an answer
        late reply   forwarded; answered after ``seconds``
        cut body     forwarded; half of the body comes, then the connection is closed
        no condition forwarded without its If-None-Match, as by a store that does not know it
    method: of HTTP, or LIST, whose key is its prefix.
    nth: which of the matching requests, from 1; if none is named, each with ``probability``.
    """

    kind: Literal["503", "409", "reset", "silence", "lost reply", "late reply", "cut body", "no condition"]
    method: str = "*"
    key: str = "*"
    nth: tuple[int, ...] = ()
    probability: float = 1.0
    seconds: float = 20.0


class Rules:
    """Faults, with the number of requests that each has matched so far."""

    def __init__(self, faults: Iterable[Fault], seed: int) -> None:
        self._faults = list(faults)
        self._matched = [0] * len(self._faults)
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def fault_for(self, method: str, key: str) -> Fault | None:
        """The first fault that hits this request; every rule that matches it counts it."""
        with self._lock:
            hits = [fault for i, fault in enumerate(self._faults) if self._hits(i, fault, method, key)]
        return hits[0] if hits else None

    def _hits(self, i: int, fault: Fault, method: str, key: str) -> bool:
        if not (fnmatchcase(method, fault.method) and fnmatchcase(key, fault.key)):
            return False
        self._matched[i] += 1
        return self._matched[i] in fault.nth if fault.nth else self._random.random() < fault.probability
