"""Trying again while an answer is unclear: waits that double, with full jitter, until patience ends.

Full jitter (a wait drawn evenly from zero to the bound) spreads writers that were all told to slow down at once; see
"Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from mlcd_core.errors import StoreError
from mlcd_core.objects.answers import Unclear

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retries:
    """How long a request is tried again: for ``total_s`` seconds, and at least ``tries`` times.

    The n-th wait is at most ``first_wait_s`` * 2^(n-1) seconds, and never longer than ``longest_wait_s``.
    draw: evenly from [0, 1).
    """

    total_s: float = 300.0
    tries: int = 5
    first_wait_s: float = 0.1
    longest_wait_s: float = 20.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[], float] = random.random

    def persist(self, attempt: Callable[[], Answer], what: str) -> Answer:
        """The first answer of ``attempt`` that is not Unclear. Raises StoreError when patience ends.

        what: the beginning of the text, ``cannot read s3://...``.
        """
        started = self.clock()
        for number in count(1):
            try:
                return attempt()
            except Unclear as unclear:
                tried = f"tried {number} times in {self.clock() - started:.0f} s"
                if number >= self.tries:
                    if self.clock() - started >= self.total_s:
                        raise StoreError(
                            f"{what}: {unclear}; {tried}; check that the store runs and that AWS_ENDPOINT_URL names "
                            "it, then run again: finished work is kept"
                        ) from unclear
                    log.warning("%s so far: %s; %s, trying again", what, unclear, tried)
            self.sleep(self.draw() * self._longest_wait_s(number))
        raise AssertionError("the loop has no end")

    def _longest_wait_s(self, number: int) -> float:
        return min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(number - 1, 30))
