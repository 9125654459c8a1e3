"""One root on which a command is disturbed, started again, and disturbed again, until a run of it ends well."""

import itertools
import json
import random
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.chaos.disturbances import ENDING, POLL_S, Family, Kind, Step, draw_plan
from tests.chaos.s3_world import World
from tests.s3.proxy import Request

OK = 200
# an actor that was killed is started again within seconds; a run whose raylet was killed notices by itself
ACTOR_S, RUN_S = 60.0, 600.0
MOST_RUNS = 20


@dataclass(frozen=True)
class Fell:
    """A disturbance of the ``run``-th start: done when the proxy had logged ``at`` requests."""

    run: int
    kind: Kind
    delay_s: float
    stopped_s: float
    at: int


@dataclass
class DisturbedRoot:
    """What happened on a root. ``seen``: write id of every receipt that existed at a disturbance, by key."""

    world: World
    root: str
    words: Sequence[str]
    draw: random.Random
    begin: int = 0
    fell: list[Fell] = field(default_factory=list)
    families: list[Family] = field(default_factory=list)
    started_at: list[int] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def run_to_end(self) -> None:
        """Start the command until one run ends with 0, and disturb each."""
        started = time.monotonic()
        self.begin = len(self.world.log.read())
        for number in itertools.count():
            family = self._start(number)
            ended_by_us = self._disturb(family, number)
            code = self._wait(family)
            if code == 0:
                break
            if not ended_by_us:
                self.errors.append(f"run {number} ended with {code} by itself: {self._last_words(number)}")
            if number == MOST_RUNS:
                self.errors.append(f"not done after {MOST_RUNS} runs")
                break
        self.seconds = time.monotonic() - started

    def requests(self) -> list[Request]:
        """Those since the root's first run began."""
        return self.world.log.read()[self.begin :]

    def counted(self) -> list[Fell]:
        """Disturbances between the first receipt and the manifest."""
        receipts, manifests = self._puts("units"), self._puts("manifests")
        if not receipts:
            return []
        return [fell for fell in self.fell if receipts[0] < fell.at <= min([*manifests, len(self.requests())])]

    def _start(self, number: int) -> Family:
        self.started_at.append(len(self.requests()))
        family = self.world.start(self.words, f"{self.root}-{number:02d}")
        self.families.append(family)
        return family

    def _disturb(self, family: Family, number: int) -> bool:
        """Carry out a drawn plan; True when a step of it ends the run."""
        plan = draw_plan(self.draw, again=bool(self._puts("units")))
        if not plan.at_start and not self._receipt_comes(family):
            return False
        for step in plan.steps:
            if self._ends_within(family, step.delay_s):
                return False
            self.seen |= self.write_ids()
            at = len(self.requests())
            if self._happens(family, step):
                self.fell.append(Fell(number, step.kind, round(step.delay_s, 3), round(step.stopped_s, 3), at))
                if step.kind in ENDING:
                    return True
        return False

    def _happens(self, family: Family, step: Step) -> bool:
        """Do the step, as soon as there is something to do it to; False when that does not come any more."""
        deadline = time.monotonic() + ACTOR_S
        while not family.disturb(step, self.draw, self.world.store.process):
            if self._ends_within(family, 0.2) or self._puts("manifests") or time.monotonic() > deadline:
                return False
        return True

    def _receipt_comes(self, family: Family) -> bool:
        """Wait for the run's first receipt; False when it ends without."""
        before, deadline = len(self._puts("units")), time.monotonic() + RUN_S
        while len(self._puts("units")) == before:
            if self._ends_within(family, POLL_S) or time.monotonic() > deadline:
                return False
        return True

    def _ends_within(self, family: Family, seconds: float) -> bool:
        try:
            family.child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _wait(self, family: Family) -> int | None:
        if not self._ends_within(family, RUN_S):
            self.errors.append(f"a run did not end in {RUN_S} s, and was killed")
            family.child.kill()
        return family.child.wait()

    def _puts(self, kind: str) -> list[int]:
        """Which of the requests made a receipt (``units``) or a manifest (``manifests``)."""
        start, inside = f"{self.root}/embed/", f"/{kind}/"
        return [
            i
            for i, (method, key, status) in enumerate(self.requests())
            if method == "PUT" and status == OK and key.startswith(start) and inside in key
        ]

    def write_ids(self) -> dict[str, str]:
        """Write id of each receipt there is, by key; those seen before are not read again."""
        keys = [key for key in self.world.store.keys(f"{self.root}/embed/") if "/units/" in key]
        return {key: write_id(self.world.store.read(key)) for key in keys if key not in self.seen}

    def _last_words(self, number: int) -> str:
        return (self.world.folder / f"{self.root}-{number:02d}.err").read_text(errors="replace")[-1500:]


def write_id(receipt: bytes) -> str:
    """Whose write a receipt is."""
    return str(json.loads(receipt)["record"]["write_id"])
