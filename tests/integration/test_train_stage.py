"""Training in real Ray: what SIGTERM and SIGKILL leave is gone on from, to the bytes of an undisturbed run."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlcd_core.runtimes import TrainRuntime
from mlcd_core.store import Receipt
from mlcd_core.train import train
from tests.distributed.harness import run_ranks
from tests.integration.train_driver import NUM_STEPS, SPEC, tiny_job
from tests.unit.train.tiny import NUM_CLASSES, open_tiny_data, tiny_chain


def undisturbed(group: Any, folder: Path) -> dict[str, str]:
    """The parts of a run by the core's loop alone."""
    link = train(
        SPEC,
        open_tiny_data(folder),
        num_classes=NUM_CLASSES,
        chain=tiny_chain(folder / "undisturbed", SPEC),
        group=group,
        runtime=TrainRuntime(device="cpu"),
    )
    return {part.name: part.sha256 for part in link.parts}


def newest(folder: Path) -> Receipt:
    link = tiny_job(folder, checkpoint_steps=1).links.open().newest()
    assert link is not None, "nothing was saved"
    return link


def records(folder: Path, event: str) -> list[dict[str, Any]]:
    """The log's records of one kind, in the order in which they were written."""
    [log] = (folder / "logs").glob("*.jsonl")
    found = [json.loads(line) for line in log.read_text().splitlines()]
    return [record for record in found if record["event"] == event]


def wait_for_step(folder: Path, step: int) -> None:
    """Return when the log has this step or a later one."""
    deadline = time.monotonic() + 300
    while not list((folder / "logs").glob("*.jsonl")) or not any(
        record["step"] >= step for record in records(folder, "train_step")
    ):
        assert time.monotonic() < deadline, f"step {step} did not come in 300 s"
        time.sleep(0.05)


@contextmanager
def driver(folder: Path, checkpoint_steps: int) -> Iterator["subprocess.Popen[str]"]:
    """A process that trains."""
    command = [sys.executable, "-m", "tests.integration.train_driver", str(folder), str(checkpoint_steps)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    with process:
        try:
            yield process
        finally:
            process.kill()


def family_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    tiny_job(folder, checkpoint_steps=1)
    return folder


def test_sigterm_saves_the_step_it_came_at_and_leaves_no_process(folder: Path) -> None:
    with driver(folder, checkpoint_steps=10 * NUM_STEPS) as process:
        wait_for_step(folder, random.randint(20, NUM_STEPS // 4))
        family = family_of(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    _, alive = psutil.wait_procs(family, timeout=30)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
    # there is no other checkpoint before the end
    assert newest(folder).number == records(folder, "train_step")[-1]["step"]
    assert 0 < newest(folder).number < NUM_STEPS


def test_a_worker_that_is_killed_after_that_is_replaced_and_the_bytes_are_those_of_an_undisturbed_run(
    folder: Path,
) -> None:
    stopped_at = newest(folder).number
    with driver(folder, checkpoint_steps=20) as process:
        wait_for_step(folder, random.randint(stopped_at + 25, stopped_at + 100))
        time.sleep(random.uniform(0, 0.5))
        workers = [child for child in family_of(process) if "TrainWorker" in " ".join(child.cmdline())]
        assert len(workers) == 2
        random.choice(workers).send_signal(signal.SIGKILL)
        said, _ = process.communicate(timeout=300)
    assert (process.returncode, said.splitlines()[-1]) == (0, "[2]")  # Ray prints there that a worker died
    last_attempt = records(folder, "train_attempt")[-1]
    assert (last_attempt["attempt"], last_attempt["world_size"]) == (2, 2)
    assert "exit" in last_attempt["after"]
    first, second = (record["first_step"] for record in records(folder, "train_start")[1:])
    assert first == stopped_at
    assert second > stopped_at
    assert newest(folder).number == NUM_STEPS
    [expected, _] = run_ranks(partial(undisturbed, folder=folder), 2, folder)
    assert {part.name: part.sha256 for part in newest(folder).parts} == expected
