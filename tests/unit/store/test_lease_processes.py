"""Leases of real processes, on disk and on S3: they race, are killed, and are stopped for longer than the limit."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.unit.store import lease_racer

REPO = Path(__file__).parents[3]
LONG_S = 600.0  # nobody waits for it


class Process:
    """A racer, and the lines it is told and answers."""

    def __init__(self, child: "subprocess.Popen[str]") -> None:
        self.child = child

    def tell(self, line: str) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(f"{line}\n")
        self.child.stdin.flush()

    def answer(self) -> str:
        assert self.child.stdout is not None
        return self.child.stdout.readline().strip()

    def asked(self, line: str) -> str:
        self.tell(line)
        return self.answer()


Start = Callable[..., Process]


@pytest.fixture
def start(address: str, tmp_path: Path) -> Iterator[Start]:
    """Starts racers for one lease; they are killed at the end."""
    with ExitStack() as stack:

        def start_one(*, beat_s: float = LONG_S, stale_s: float = LONG_S) -> Process:
            words = [lease_racer.__file__, address, str(tmp_path / "witness"), str(beat_s), str(stale_s)]
            child = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, *words],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=REPO,
                    env={**os.environ, "PYTHONPATH": str(REPO)},
                )
            )
            stack.callback(child.kill)
            return Process(child)

        yield start_one


def test_processes_that_race_for_a_lease_never_hold_it_at_once_though_some_are_killed(
    start: Start, address: str
) -> None:
    racers = [start() for _ in range(2)]
    turns = 4 if address.startswith("s3") else 15
    for _ in range(3):
        victim = start()
        victim.tell("race 1000000")
        for racer in racers:
            racer.tell(f"race {turns}")
        assert [racer.answer() for racer in racers] == [f"raced {turns}"] * 2
        assert victim.child.poll() is None
        victim.child.kill()  # with the lease, or as it takes it, or as it waits


def test_the_lease_of_a_killed_process_is_taken_over_though_its_heartbeat_would_count_for_long(start: Start) -> None:
    holder = start()
    assert holder.asked("take") == "taken"
    for _ in range(3):
        waiter = start()
        waiter.tell("take")
        assert holder.asked("confirm") == "held"
        holder.child.kill()
        assert waiter.answer() == "taken"
        holder = waiter


def test_a_stopped_process_is_taken_over_when_it_is_silent_for_long_and_then_knows_that_it_lost(start: Start) -> None:
    first, second = start(beat_s=0.1, stale_s=1.0), start(beat_s=0.1, stale_s=1.0)
    assert first.asked("take") == "taken"
    assert first.asked("confirm") == "held"
    first.child.send_signal(signal.SIGSTOP)
    assert second.asked("take") == "taken"
    first.child.send_signal(signal.SIGCONT)
    assert first.asked("confirm") == "LeaseLostError"
    assert first.asked("release") == "released"
