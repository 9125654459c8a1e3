"""What disturbs a run and when, drawn from a seed: SIGKILL of driver, actor or raylet; the store stopped for seconds.

A run is disturbed at random times of the experiment's own clock. All processes of a run are found by a variable of
their environment, which children inherit: parents die and groups are left, but this stays.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import psutil

Kind = Literal["driver", "raylet", "actor", "store"]
ENDING: tuple[Kind, ...] = ("driver", "raylet")
WITHIN: tuple[Kind, ...] = ("actor", "store")
MARK = "MLCD_CHAOS_RUN"
# a unit whose worker died three times is given up by design, so one run loses at most two actors
MOST_ACTORS = 2
# seconds until the next disturbance: after the run's first receipt or the disturbance before, or from its start on
GAP_S, START_S, STOPPED_S = (0.1, 2.5), (1.0, 15.0), (1.0, 8.0)
POLL_S = 0.02


@dataclass(frozen=True)
class Step:
    """One disturbance: its kind, the seconds before it, and how long the store stays stopped."""

    kind: Kind
    delay_s: float
    stopped_s: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Disturbances of one run, in order. ``at_start``: counted from its start, not from its first receipt."""

    at_start: bool
    steps: tuple[Step, ...]


def draw_plan(draw: random.Random, *, again: bool) -> Plan:
    """Up to three disturbances that a run survives, then mostly one that ends it.

    again: the root has receipts of an earlier run, so this one may be killed while it starts.
    """
    if again and draw.random() < 0.2:
        return Plan(True, (Step("driver", draw.uniform(*START_S)),))
    kinds: list[Kind] = []
    for _ in range(draw.randint(1, 3)):
        kinds.append(draw.choice(WITHIN) if kinds.count("actor") < MOST_ACTORS else "store")
    if draw.random() < 0.8:
        kinds.append(draw.choice(ENDING))
    return Plan(False, tuple(_step(draw, kind) for kind in kinds))


def _step(draw: random.Random, kind: Kind) -> Step:
    return Step(kind, draw.uniform(*GAP_S), draw.uniform(*STOPPED_S) if kind == "store" else 0.0)


@dataclass(frozen=True)
class Family:
    """The processes of one run, by the mark in their environment."""

    child: "subprocess.Popen[bytes]"
    mark: str

    def members(self) -> Iterator[psutil.Process]:
        """Those that live now."""
        for process in psutil.process_iter():
            try:
                is_member = process.environ().get(MARK) == self.mark
            except psutil.Error:  # it ended meanwhile, or is another user's
                continue
            if is_member:
                yield process

    def disturb(self, step: Step, draw: random.Random, store: "subprocess.Popen[bytes]") -> bool:
        """Do what the step says; False when there was nothing to do it to."""
        if step.kind == "store":
            store.send_signal(signal.SIGSTOP)
            time.sleep(step.stopped_s)
            store.send_signal(signal.SIGCONT)
            return True
        if step.kind == "driver":
            os.killpg(self.child.pid, signal.SIGKILL)
            return True
        victims = self._actors() if step.kind == "actor" else self._raylets()
        return bool(victims) and killed(draw.choice(victims))

    def _actors(self) -> list[psutil.Process]:
        """The embedding actors that are at work."""
        return sorted((p for p in self.members() if first_word(p).startswith("ray::MapWorker")), key=lambda p: p.pid)

    def _raylets(self) -> list[psutil.Process]:
        return [process for process in self.members() if first_word(process).endswith("/raylet")]


def first_word(process: psutil.Process) -> str:
    """How a process calls itself; empty when it has ended."""
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


def killed(process: psutil.Process) -> bool:
    """SIGKILL one process; False when it had ended before."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True
