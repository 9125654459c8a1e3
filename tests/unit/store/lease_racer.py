"""A process that takes a lease when it is told to; it answers on stdout, a line for each line on stdin.

    python lease_racer.py ROOT WITNESS BEAT_S STALE_S
    take       -> taken
    confirm    -> held
    release    -> released
    race N     -> raced N, after taking and releasing N times

or the name of an error. While it holds the lease in a race it has an exclusive lock of the file WITNESS, which the
system gives up when the process ends; where another process has that lock it answers BlockingIOError.
"""

import fcntl
import logging
import sys
from contextlib import ExitStack
from pathlib import Path

from mlcd_core.errors import MlcdError
from mlcd_core.specs import EmbedSpec
from mlcd_core.store import StageFolder, open_files
from mlcd_core.store.lease import Lease, Pace
from tasks.lease import stage_lease

INPUTS = {"data": "0" * 64}


class Racer:
    """One process of a race."""

    def __init__(self, root: str, witness: Path, pace: Pace) -> None:
        self._folder = StageFolder(open_files(root), EmbedSpec())
        self._witness = witness
        self._pace = pace
        self._held = ExitStack()
        self._lease: Lease | None = None

    def answer(self, word: str, number: int) -> str:
        """Do what is asked, and say how it went."""
        try:
            return self._answer(word, number)
        except (MlcdError, BlockingIOError) as error:
            sys.stderr.write(f"{error}\n")
            return type(error).__name__

    def _answer(self, word: str, number: int) -> str:
        if word == "race":
            for _ in range(number):
                self._take_turn()
            return f"raced {number}"
        if word == "take":
            self._lease = self._take(self._held)
            return "taken"
        assert self._lease is not None
        if word == "confirm":
            self._lease.confirm()
            return "held"
        self._held.close()
        return "released"

    def _take_turn(self) -> None:
        with ExitStack() as turn, self._witness.open("a") as file:
            lease = self._take(turn)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lease.confirm()
            fcntl.flock(file, fcntl.LOCK_UN)

    def _take(self, held: ExitStack) -> Lease:
        log = logging.getLogger("racer")
        return held.enter_context(stage_lease(self._folder, INPUTS, run="racer", log=log, pace=self._pace))


def main() -> None:
    """Answer until stdin ends."""
    root, witness, beat_s, stale_s = sys.argv[1:]
    racer = Racer(root, Path(witness), Pace(beat_s=float(beat_s), stale_s=float(stale_s), look_s=0.01))
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        sys.stdout.write(f"{racer.answer(word, int(number or 0))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
