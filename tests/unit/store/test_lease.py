"""A lease of a stage: one holder at a time while both live, taken over from the dead, and lost without harm."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mlcd_core.errors import CorruptRecordError, LeaseHeldError, LeaseLostError
from mlcd_core.store import Files
from mlcd_core.store.claims import Claim, Claims
from mlcd_core.store.holder import Holder, is_gone, this_process
from mlcd_core.store.lease import PACE, Lease, take_lease
from tests.unit.store.interleaving import MemoryFiles

PREFIX, INPUT = "embed/0123456789ab", "f" * 64


class Clock:
    """Time that passes only in a sleep; ``during`` is called in each."""

    def __init__(self, during: Callable[[], object] = lambda: None) -> None:
        self.now = 0.0
        self.during = during

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.during()


@pytest.fixture
def claims(files: Files) -> Claims:
    return Claims(files, PREFIX, INPUT)


@pytest.fixture
def memory() -> Claims:
    """The same in memory, for what takes many looks."""
    return Claims(MemoryFiles(), PREFIX, INPUT)


def elsewhere(run: str = "theirs") -> Holder:
    """A holder on a machine that nobody can look at."""
    return replace(this_process(run), host="gpu-7", machine="another boot")


def taken(claims: Claims, holder: Holder, clock: Clock | None = None, wait_s: float = -1, **effects: object) -> Lease:
    clock = clock or Clock(pytest.fail)
    effects = {"tell": lambda line: None, **effects}
    return take_lease(claims, holder, wait_s=wait_s, clock=clock, sleep=clock.sleep, **effects)  # type: ignore[arg-type]


def at_times(clock: Clock, times: dict[float, Callable[[], object]]) -> Callable[[], None]:
    """What happens when the clock reaches each of these times."""

    def act() -> None:
        for time in [time for time in times if time <= clock.now]:
            times.pop(time)()

    return act


def test_a_free_lease_is_taken_at_once_and_says_who_has_it(claims: Claims, files: Files) -> None:
    taken(claims, this_process("brave-otter"))
    [info] = files.list(PREFIX)
    assert info.path == f"{PREFIX}/leases/ffffffffffff-0000001.json"
    record = json.loads(files.read(info.path) or b"")
    assert (record["holder"]["run"], record["holder"]["pid"]) == ("brave-otter", os.getpid())


def test_the_second_waits_until_the_first_releases(claims: Claims, files: Files) -> None:
    first = taken(claims, elsewhere())
    clock = Clock()
    clock.during = at_times(clock, {60: first.release})
    taken(claims, this_process("ours"), clock).confirm()
    assert clock.now == 60
    assert [info.path[-12:-5] for info in files.list(PREFIX)] == ["0000002"]  # what is behind is tidied away


def test_a_holder_whose_heart_beats_is_waited_for_however_long(memory: Claims) -> None:
    first = taken(memory, elsewhere())
    clock = Clock()
    beats = dict.fromkeys(range(100, 20_000, 100), first.beat)
    clock.during = at_times(clock, {**beats, 20_000: first.release})
    taken(memory, this_process("ours"), clock)
    assert clock.now == 20_000


def test_a_holder_without_a_heartbeat_is_taken_over_after_the_limit_of_the_one_who_waits(claims: Claims) -> None:
    first = taken(claims, elsewhere())
    clock = Clock()
    clock.during = at_times(clock, {50: first.beat})
    told: list[str] = []
    taken(claims, this_process("ours"), clock, tell=told.append)
    assert clock.now == pytest.approx(50 + PACE.stale_s, abs=PACE.look_s)
    assert "taken over from the run theirs" in told[-1]
    with pytest.raises(LeaseLostError, match="given to the run ours"):
        first.confirm()


def test_who_was_stopped_itself_does_not_take_the_time_for_silence_of_the_holder(claims: Claims) -> None:
    first = taken(claims, elsewhere())
    clock = Clock()

    def stopped() -> None:
        clock.now += 10_000  # both were: of a whole machine, say

    clock.during = at_times(clock, {20: stopped, 10_030: first.release})
    taken(claims, this_process("ours"), clock).confirm()
    assert clock.now == pytest.approx(10_030, abs=PACE.look_s)


def test_a_holder_that_ended_on_this_machine_is_taken_over_without_a_wait(claims: Claims) -> None:
    with child_of("input()") as child:
        holder = process_of(child.pid)
        taken(claims, holder)
        with pytest.raises(LeaseHeldError):
            taken(claims, this_process("ours"), Clock(), wait_s=0)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and its status not asked for
        taken(claims, this_process("ours")).confirm()


def test_when_the_wait_ends_the_error_names_holder_host_and_age_and_the_way_out(claims: Claims) -> None:
    first = taken(claims, elsewhere(), Clock())
    clock = Clock()
    clock.during = at_times(clock, {30: first.beat})
    with pytest.raises(LeaseHeldError) as error:
        taken(claims, this_process("ours"), clock, wait_s=95)
    assert clock.now == 95
    holder = claims.newest().holder  # type: ignore[union-attr]
    for word in ("the run theirs", f"process {holder.pid} on gpu-7", "1 min 05 s", holder.since, "waited 95 s"):
        assert word in str(error.value)
    assert claims.uri(1) in str(error.value)


def test_whoever_may_not_wait_does_not(claims: Claims) -> None:
    taken(claims, elsewhere())
    with pytest.raises(LeaseHeldError, match="waited 0 s"):
        taken(claims, this_process("ours"), Clock(pytest.fail), wait_s=0)


def test_a_wait_is_told_every_few_seconds_and_a_long_one_once_a_minute(memory: Claims) -> None:
    first = taken(memory, elsewhere())
    clock = Clock(first.beat)
    told: list[float] = []
    with pytest.raises(LeaseHeldError):
        taken(memory, this_process("ours"), clock, wait_s=3600, tell=lambda line: told.append(clock.now))
    assert told[:3] == [0, 6, 12]
    assert told[-1] - told[-2] == 60


def test_a_lost_lease_neither_beats_nor_releases(claims: Claims) -> None:
    first = taken(claims, elsewhere())
    taken(claims, this_process("ours"), is_gone=lambda holder: True)
    for act in (first.beat, first.confirm, first.release):
        with pytest.raises(LeaseLostError):
            act()
    assert claims.newest().holder.run == "ours"  # type: ignore[union-attr]


def test_deleting_its_object_takes_a_lease_away(claims: Claims, files: Files) -> None:
    first = taken(claims, elsewhere())
    for info in files.list(PREFIX):
        files.delete(info.path)
    with pytest.raises(LeaseLostError, match="deleted"):
        first.confirm()
    taken(claims, this_process("ours"))
    with pytest.raises(LeaseLostError, match="given to the run ours"):
        first.beat()


def test_a_claim_that_slept_through_others_does_not_count(claims: Claims) -> None:
    for _ in range(2):
        taken(claims, elsewhere()).release()
    taken(claims, elsewhere("third"))  # the first two epochs are gone
    assert not claims.create(Claim(1, this_process("late")))
    assert not claims.create(Claim(3, this_process("late")))
    assert claims.newest().holder.run == "third"  # type: ignore[union-attr]


def test_a_heartbeat_that_slept_through_others_changes_nothing(claims: Claims) -> None:
    taken(claims, elsewhere()).release()
    taken(claims, elsewhere("second")).release()
    claims.put(Claim(1, elsewhere("late"), beats=7))
    assert claims.newest() == replace(claims.newest(), epoch=2, released=True)  # type: ignore[type-var]


def test_leases_of_other_inputs_are_others(claims: Claims, files: Files) -> None:
    taken(claims, elsewhere())
    other = taken(Claims(files, PREFIX, "e" * 64), elsewhere())
    other.confirm()
    assert claims.newest().epoch == 1  # type: ignore[union-attr]


def test_a_store_that_still_lists_a_deleted_claim_is_asked_again_until_it_does_not() -> None:
    files = MemoryFiles()
    claims = Claims(files, PREFIX, INPUT)
    taken(claims, elsewhere())
    [path] = files.objects
    files.read = lambda _: None  # type: ignore[method-assign]
    clock = Clock()
    clock.during = at_times(clock, {10: lambda: files.objects.pop(path)})
    taken(claims, this_process("ours"), clock)
    assert clock.now == 10


def test_an_object_that_is_no_lease_says_what_to_do(claims: Claims, files: Files) -> None:
    files.put(f"{PREFIX}/leases/ffffffffffff-0000001.json", b"{}")
    with pytest.raises(CorruptRecordError, match="delete it and run again"):
        taken(claims, elsewhere())


@contextmanager
def child_of(code: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is killed at the end, at the latest."""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()


def stat_of(pid: int) -> list[str]:
    """What the system says of a process, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def process_of(pid: int) -> Holder:
    """A claim as that process would make it."""
    return replace(this_process("theirs"), pid=pid, started=stat_of(pid)[19])


def test_a_process_is_gone_when_it_ended_and_not_when_it_is_stopped() -> None:
    with child_of("input()") as child:
        holder = process_of(child.pid)
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        assert not is_gone(holder)
        assert is_gone(replace(holder, started="1"))  # another process got its number
    assert is_gone(holder)


def test_a_process_with_a_living_thread_is_not_gone() -> None:
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=lambda: [print(flush=True), time.sleep(600)]).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    with child_of(code) as child:
        holder = process_of(child.pid)
        assert child.stdout is not None
        child.stdout.readline()
        while stat_of(child.pid)[0] != "Z":
            assert child.poll() is None
        assert not is_gone(holder)


@pytest.mark.parametrize("change", [{"host": "gpu-7"}, {"machine": "another boot"}, {"machine": ""}])
def test_of_a_process_on_another_machine_nothing_is_known(change: dict[str, str]) -> None:
    assert not is_gone(replace(this_process("theirs"), pid=2**22 + 1, **change))
    assert is_gone(replace(this_process("theirs"), pid=2**22 + 1))
