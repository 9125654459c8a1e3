"""Training that is killed and resumed: the same bytes at one world size, the same course at another."""

import os
import random
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from mlcd_core.runtimes import TrainRuntime
from mlcd_core.train import train
from tests.distributed.harness import RankFailedError, run_ranks
from tests.unit.train.tiny import NUM_CLASSES, open_tiny_data, tiny_chain, tiny_spec, write_tiny_data

RUNTIME = TrainRuntime(device="cpu", checkpoint_steps=3, log_steps=1)
NUM_STEPS = 28  # 4 epochs


class StoppedError(Exception):
    """Ends a run from inside its reporter."""


def run(group, data_folder, root, report=lambda event, values: None, epochs=4):
    spec = tiny_spec(epochs=epochs)
    return train(
        spec,
        open_tiny_data(Path(data_folder)),
        num_classes=NUM_CLASSES,
        chain=tiny_chain(Path(root), spec),
        group=group,
        runtime=RUNTIME,
        report=report,
    )


def run_to_the_end(group, data_folder, root):
    link = run(group, data_folder, root)
    return {
        "digests": {part.name: part.sha256 for part in link.parts},
        "steps": [record["step"] for record in link.state["curve"]],
        "losses": [record["loss"] for record in link.state["curve"]],
    }


def run_until_killed(group, data_folder, root, kill_step, delay_s):
    """SIGKILL this process from a timer that starts at ``kill_step``: anywhere in a step, or in a save."""

    def report(event, values):
        if event == "train_step" and values["step"] == kill_step:
            threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()

    run(group, data_folder, root, report)
    threading.Event().wait()  # the timer was late: die after the end, and prove less


def run_and_stop(group, data_folder, root, step):
    """Stop after ``step``; returns this rank's rows of every batch and the drawn classes of the steps that follow."""

    def report(event, values):
        if event == "train_step" and values["step"] == step:
            raise StoppedError

    try:
        run(group, data_folder, root, report)
    except StoppedError:
        os._exit(0)  # the other ranks wait in a collective; the parent ends them


@pytest.fixture
def data_folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_tiny_data(folder)
    return folder


@pytest.mark.parametrize("world_size", [1, 2])
def test_sigkill_at_random_times_leaves_the_bytes_of_an_undisturbed_run(world_size, data_folder, tmp_path):
    undisturbed = run_ranks(partial(run_to_the_end, data_folder=data_folder, root=tmp_path / "a"), world_size, tmp_path)
    dice = random.Random(world_size)
    for kill_step in (dice.randint(1, 6), dice.randint(10, 24)):
        doomed = partial(
            run_until_killed,
            data_folder=data_folder,
            root=tmp_path / "b",
            kill_step=kill_step,
            delay_s=dice.uniform(0, 0.1),
        )
        with pytest.raises(RankFailedError, match="exit code -9"):
            run_ranks(doomed, world_size, tmp_path)
    newest = tiny_chain(tmp_path / "b", tiny_spec(epochs=4)).newest()
    assert newest is not None
    assert 0 < newest.number
    resumed = run_ranks(partial(run_to_the_end, data_folder=data_folder, root=tmp_path / "b"), world_size, tmp_path)
    assert resumed[0]["digests"] == undisturbed[0]["digests"]
    assert resumed[0]["losses"] == undisturbed[0]["losses"]
    assert resumed[0]["steps"] == list(range(1, NUM_STEPS + 1))


def test_saved_on_two_ranks_resumes_on_one_and_on_four(data_folder, tmp_path):
    undisturbed = run_ranks(partial(run_to_the_end, data_folder=data_folder, root=tmp_path / "a"), 2, tmp_path)
    for world_size in (1, 4):
        root = tmp_path / f"to-{world_size}"
        doomed = partial(run_until_killed, data_folder=data_folder, root=root, kill_step=10, delay_s=0.0)
        with pytest.raises(RankFailedError, match="exit code -9"):
            run_ranks(doomed, 2, tmp_path)
        found = run_ranks(partial(run_to_the_end, data_folder=data_folder, root=root), world_size, tmp_path)
        assert found[0]["digests"].keys() == undisturbed[0]["digests"].keys()
        torch.testing.assert_close(
            torch.tensor(found[0]["losses"]), torch.tensor(undisturbed[0]["losses"]), rtol=1e-3, atol=1e-3
        )
