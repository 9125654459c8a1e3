"""What ``mlcd down`` ends, with real processes in the place of server and worker."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from mlcd_core.store.holder import Holder, process_of
from tasks.services import running_services, state_folder, stop_services

# a worker with a run: a process whose child goes on when it is killed
SCRIPT = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"


class Worker:
    """A process with a child, in a session of their own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        self.run = psutil.Process(int(self.process.stdout.readline()))
        self.holder = process_of(self.process.pid, "worker")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def is_run_alive(self) -> bool:
        return self.run.is_running() and self.run.status() != psutil.STATUS_ZOMBIE

    def clean(self) -> None:
        for process in (self.process, self.run):
            if psutil.pid_exists(process.pid):
                process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    worker = Worker()
    yield worker
    worker.clean()


def remember(*holders: Holder) -> None:
    state_folder().mkdir()
    record = {"port": 4200, "processes": [asdict(holder) for holder in holders]}
    (state_folder() / "services.json").write_text(json.dumps(record))


def test_down_ends_a_worker_and_its_run(worker: Worker) -> None:
    remember(worker.holder)
    assert running_services() is not None
    assert stop_services(lambda _: None)
    assert worker.process.wait(timeout=30) == -signal.SIGTERM
    assert not worker.is_run_alive()
    assert running_services() is None
    assert not stop_services(lambda _: None)


def test_down_ends_the_run_of_a_worker_that_was_killed(worker: Worker) -> None:
    remember(worker.holder)
    worker.kill()
    assert worker.is_run_alive()
    told: list[str] = []
    assert stop_services(told.append)
    deadline = time.monotonic() + 30
    while worker.is_run_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not worker.is_run_alive()
    assert told == ["worker: stopped"]


@pytest.mark.parametrize("change", [{"started": "1"}, {"machine": "another boot"}])
def test_a_process_that_got_the_number_later_is_left_be(worker: Worker, change: dict[str, str]) -> None:
    remember(replace(worker.holder, **change))
    assert running_services() is None
    assert not stop_services(lambda _: None)
    assert worker.process.poll() is None
    assert worker.is_run_alive()
