"""Training that is killed and resumed: the same bytes at one world size, the same course at another."""

import os
import random
import shutil
import signal
import threading
from functools import partial
from pathlib import Path

import pytest

from mlcd_core.events import silent
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.train import train
from tests.distributed.harness import RankFailedError, run_ranks
from tests.unit.train.tiny import NUM_CLASSES, open_tiny_data, tiny_chain, tiny_spec, write_tiny_data

RUNTIME = TrainRuntime(device="cpu", checkpoint_steps=3, log_steps=1)
EPOCHS = 3
NUM_STEPS = 21


def run(group, data_folder, root, report=silent):
    spec = tiny_spec(epochs=EPOCHS)
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


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_tiny_data(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed_by_two(data_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return run_ranks(partial(run_to_the_end, data_folder=data_folder, root=folder / "root"), 2, folder)[0]


def killed(data_folder, root, world_size, tmp_path, *, kill_step, delay_s):
    """Start a run in other processes, kill rank 0 (or all) with SIGKILL, and return the newest link's number."""
    doomed = partial(run_until_killed, data_folder=data_folder, root=root, kill_step=kill_step, delay_s=delay_s)
    with pytest.raises(RankFailedError, match="exit code -9"):
        run_ranks(doomed, world_size, tmp_path)
    return tiny_chain(root, tiny_spec(epochs=EPOCHS)).newest().number


def check_equal(found, undisturbed):
    assert found["digests"] == undisturbed["digests"]
    assert found["losses"] == undisturbed["losses"]
    assert found["steps"] == list(range(1, NUM_STEPS + 1))


def test_sigkill_at_a_random_time_leaves_the_bytes_of_an_undisturbed_run_at_one_rank(data_folder, tmp_path):
    dice, root = random.Random(), tmp_path / "root"
    number = killed(data_folder, root, 1, tmp_path, kill_step=dice.randint(4, 12), delay_s=dice.uniform(0, 0.05))
    assert 0 < number < NUM_STEPS
    check_equal(run_to_the_end(None, data_folder, root), run_to_the_end(None, data_folder, tmp_path / "undisturbed"))


def test_sigkill_at_a_random_time_leaves_the_bytes_of_an_undisturbed_run_at_two_ranks(
    data_folder, undisturbed_by_two, tmp_path
):
    dice, root = random.Random(), tmp_path / "root"
    number = killed(data_folder, root, 2, tmp_path, kill_step=dice.randint(4, 12), delay_s=dice.uniform(0, 0.05))
    assert 0 < number < NUM_STEPS
    found = run_ranks(partial(run_to_the_end, data_folder=data_folder, root=root), 2, tmp_path)
    check_equal(found[0], undisturbed_by_two)


def test_saved_on_two_ranks_resumes_on_one_and_on_four(data_folder, undisturbed_by_two, tmp_path):
    roots = [tmp_path / "to-one", tmp_path / "to-four"]
    number = killed(data_folder, roots[0], 2, tmp_path, kill_step=10, delay_s=0.0)
    shutil.copytree(roots[0], roots[1])
    on_one = run_to_the_end(None, data_folder, roots[0])
    on_four = run_ranks(partial(run_to_the_end, data_folder=data_folder, root=roots[1]), 4, tmp_path)[0]
    for found in (on_one, on_four):
        assert found["digests"].keys() == undisturbed_by_two["digests"].keys()
        assert found["losses"][:number] == undisturbed_by_two["losses"][:number]
        assert found["losses"] == pytest.approx(undisturbed_by_two["losses"], rel=1e-4)
