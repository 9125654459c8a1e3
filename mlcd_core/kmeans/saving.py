"""How a clustering is stopped and goes on inside an iteration, and inside the parts before the first.

The end of an iteration is a state, which ``fit`` takes and gives by itself. At a hundred million rows an iteration
takes an hour, so what it has summed so far is handed out and taken back too (``partial``), as are the states of the
slices that a hierarchical clustering starts from.
"""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from mlcd_core.kmeans.partial import PartialSums
from mlcd_core.kmeans.state import CentroidState

SAVE_SECONDS = 300.0

Parts = tuple[CentroidState, ...]


@dataclass(frozen=True)
class Saving:
    """What ``fit`` goes on from besides a state, and whom it tells what it has so far.

    ``read_partial`` is called once, on the first rank, for the sums that the iteration after ``resume`` goes on from;
    block numbers must differ between ranks then. It is a function, so that nobody but ``fit`` holds sums as big as
    memory allows: keep no reference to them. What it raises is raised on the first rank, the others lose it.

    With ``on_partial`` (on all ranks or none) the first rank calls it with what a longer iteration has summed, about
    every ``save_seconds`` by ``clock``, beside the state it began from. ``before_block`` is called before each block of
    rows and may raise to leave.

    The recipe ``hierarchical``, whose slices of the rows go by block number, calls ``on_parts`` on every rank with the
    states of its slices so far (``hierarchical``); ``parts`` goes on from them.
    """

    read_partial: Callable[[], PartialSums | None] = lambda: None
    parts: Parts = ()
    on_partial: Callable[[CentroidState, PartialSums], None] | None = None
    on_parts: Callable[[Parts], None] | None = None
    save_seconds: float = SAVE_SECONDS
    before_block: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic

    @property
    def round_seconds(self) -> float:
        """How long ranks sum before they add up: for ever when nobody saves it."""
        return math.inf if self.on_partial is None else self.save_seconds

    def save_after(self, state: CentroidState) -> Callable[[PartialSums], None] | None:
        """Saves sums of the iteration after ``state``."""
        return None if self.on_partial is None else functools.partial(self.on_partial, state)


UNDISTURBED = Saving()
