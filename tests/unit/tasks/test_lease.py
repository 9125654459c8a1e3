"""Runs of the same stage: the second waits and uses what the first made, and whoever lost its lease does not seal."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlcd_core.config import load_config
from mlcd_core.errors import LeaseHeldError, LeaseLostError, StageFailedError, StoreError
from mlcd_core.identity import fingerprint
from mlcd_core.specs import EmbedSpec
from mlcd_core.store import LocalFiles, StageFolder
from mlcd_core.store.claims import Claims
from mlcd_core.store.holder import this_process
from mlcd_core.store.lease import Lease, Pace, take_lease
from tasks.lease import stage_lease
from tasks.run import Request, Run
from tasks.stage import Manner, StageOutcome, run_stage
from tasks.work import Job, Made, StageWork

INPUTS = {"data": "0" * 64}
UNITS = tuple(fingerprint(name) for name in "abc")
FAST = Pace(beat_s=0.01)
LIMIT_S = 60.0


class UnreliableFiles(LocalFiles):
    """A folder that cannot be written while ``is_down``."""

    is_down = False

    def put(self, path: str, data: bytes) -> None:
        if self.is_down:
            raise StoreError("cannot write, the store is down")
        super().put(path, data)


class Lines(logging.Handler):
    """What was logged, and a way to wait for a line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._more = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._more:
            self.lines.append(f"{record.levelname} {record.getMessage()}")
            self._more.notify_all()

    def wait_for(self, words: str) -> None:
        with self._more:
            assert self._more.wait_for(lambda: any(words in line for line in self.lines), LIMIT_S), self.lines


class World:
    """A root with one stage of three units, and what a run of it does."""

    def __init__(self, root: Path) -> None:
        self.files = UnreliableFiles(root)
        self.folder = StageFolder(self.files, EmbedSpec())
        self.claims = Claims(self.files, self.folder.prefix, fingerprint(INPUTS))
        self.make: Callable[[Job], Made] = self.commit_all
        self.made = 0
        self._work = StageWork(EmbedSpec(), INPUTS, self._make, UNITS)
        self._run = Run(Request(str(root)), self.files, load_config("laptop", environment={}, overrides={}), (), (), "")

    def run(self, wait_s: float = -1) -> StageOutcome:
        manner = Manner(wait_s=wait_s)
        return run_stage(self._work, self._run, None, manner, run_name="default")  # type: ignore[arg-type]  # needs no Ray

    def _make(self, job: Job) -> Made:
        self.made += 1
        return self.make(job)

    def commit_all(self, job: Job) -> Made:
        for task in job.plan.pending:
            part = job.folder.put(task.unit[:12], ".arrow", task.unit.encode(), rows=1, usable=1)
            job.folder.commit(task, [part])
        metrics = {"status": {"ok": 0}, "failed_units": []}
        return Made(job.folder.receipts(UNITS, job.plan), metrics)

    def take_over(self) -> Lease:
        """As a run elsewhere does that saw no heartbeat."""
        return take_lease(self.claims, this_process("theirs"), is_gone=lambda _: True, tell=lambda _: None)

    def listing(self) -> list[tuple[str, int]]:
        paths = (path for path in sorted(self.files.root.rglob("*")) if path.is_file())
        return [(str(path), path.stat().st_mtime_ns) for path in paths]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "root")


@pytest.fixture
def log() -> Iterator[Lines]:
    """What runs log."""
    lines = Lines()
    logger = logging.getLogger("mlcd")
    before = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    yield lines
    logger.setLevel(before)
    logger.removeHandler(lines)


@contextmanager
def held(world: World, pace: Pace = FAST) -> Iterator[Lease]:
    with stage_lease(world.folder, INPUTS, run="ours", log=logging.getLogger("mlcd"), pace=pace) as lease:
        yield lease


def until(condition: Callable[[], Any]) -> None:
    """Look again and again."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline


def test_a_second_run_of_the_same_waits_and_uses_what_the_first_made(world: World, log: Lines) -> None:
    started, go_on = threading.Event(), threading.Event()

    def make_slowly(job: Job) -> Made:
        started.set()
        assert go_on.wait(LIMIT_S)
        return world.commit_all(job)

    world.make = make_slowly
    with ThreadPoolExecutor() as pool:
        first = pool.submit(world.run)
        assert started.wait(LIMIT_S)
        with pytest.raises(LeaseHeldError, match="embed is being made by the run default"):
            world.run(wait_s=0)
        second = pool.submit(world.run)
        log.wait_for("embed: waiting for the run default")
        go_on.set()
        outcomes = [first.result(LIMIT_S), second.result(LIMIT_S)]
    assert [outcome.result for outcome in outcomes] == ["ran", "cached"]
    assert outcomes[0].manifest == outcomes[1].manifest
    assert (world.made, outcomes[0].units_run, outcomes[1].units_run) == (1, 3, 0)


def test_a_committed_stage_takes_no_lease_waits_for_nobody_and_writes_nothing(world: World) -> None:
    world.run()
    lease = world.take_over()
    before = world.listing()
    assert world.run().result == "cached"
    assert world.listing() == before
    lease.confirm()


def test_a_run_that_lost_its_lease_keeps_its_units_and_does_not_seal(world: World) -> None:
    def make_while_taken_over(job: Job) -> Made:
        made = world.commit_all(job)
        world.take_over()
        return made

    world.make = make_while_taken_over
    with pytest.raises(LeaseLostError, match="given to the run theirs"):
        world.run()
    plan = world.folder.plan(INPUTS, UNITS)
    assert (plan.manifest, len(plan.done)) == (None, 3)
    assert world.claims.newest().holder.run == "theirs"  # type: ignore[union-attr]


def test_a_failed_stage_leaves_its_lease_to_the_next_run(world: World) -> None:
    def fail(job: Job) -> Made:
        raise StageFailedError("as it happens")

    world.make = fail
    with pytest.raises(StageFailedError):
        world.run()
    world.make = world.commit_all
    assert world.run(wait_s=0).result == "ran"


def test_while_a_lease_is_held_its_heart_beats_and_after_it_no_more(world: World) -> None:
    with held(world):
        until(lambda: world.claims.newest().beats >= 3)  # type: ignore[union-attr]
    assert world.claims.newest().released  # type: ignore[union-attr]
    assert not [thread for thread in threading.enumerate() if thread.name == "lease of embed"]


def test_a_lost_lease_is_told_at_the_next_heartbeat(world: World, log: Lines) -> None:
    with held(world):
        theirs = world.take_over()
        log.wait_for("ERROR embed: this run was stopped")
    theirs.confirm()


def test_a_store_that_is_down_for_a_while_costs_heartbeats_and_not_the_lease(world: World, log: Lines) -> None:
    with held(world) as lease:
        world.files.is_down = True
        log.wait_for("WARNING no heartbeat was written: cannot write")
        world.files.is_down = False
        beats = world.claims.newest().beats  # type: ignore[union-attr]
        until(lambda: world.claims.newest().beats > beats)  # type: ignore[union-attr]
        lease.confirm()


def test_a_lease_that_cannot_be_released_does_not_undo_the_work(world: World, log: Lines) -> None:
    with held(world, Pace()):
        world.files.is_down = True
    assert "WARNING the lease was not released" in log.lines[-1]
