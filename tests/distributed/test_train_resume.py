"""Training that is killed and resumed: the same bytes at one world size, the same course at another."""

import os
import random
import shutil
import signal
import threading
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from mlcd_core.errors import TrainingStopped
from mlcd_core.events import silent
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.train import loop as loop_module
from mlcd_core.train import train, whole_curve
from mlcd_core.train.batches import NO_ROW
from mlcd_core.train.ranks import Ranks
from tests.distributed.harness import RankFailedError, run_ranks
from tests.unit.train.tiny import NUM_CLASSES, NUM_USABLE, open_tiny_data, tiny_chain, tiny_spec, write_tiny_data

RUNTIME = TrainRuntime(device="cpu", checkpoint_steps=3, log_steps=1)
EPOCHS = 3
STEPS_PER_EPOCH = 7
NUM_STEPS = 21


def run(group, data_folder, root, report=silent, stop=loop_module.never):
    spec = tiny_spec(epochs=EPOCHS)
    return train(
        spec,
        open_tiny_data(Path(data_folder)),
        num_classes=NUM_CLASSES,
        chain=tiny_chain(Path(root), spec),
        group=group,
        runtime=RUNTIME,
        report=report,
        stop=stop,
    )


def course(group, data_folder, root, stop_at_once=False):
    """What this rank read and drew at each step, and the end of the run where it was not stopped."""
    steps, real = {}, loop_module.train_step

    def noted(trainee, batch, *, step, rate_share):
        steps[step] = {"rows": batch.rows_B.tolist(), "drawn": trainee.head.sampled_ids(step).tolist()}
        return real(trainee, batch, step=step, rate_share=rate_share)

    with mock.patch.object(loop_module, "train_step", noted):
        try:
            link = run(group, data_folder, root, stop=lambda: stop_at_once and Ranks(group).rank == 0)
        except TrainingStopped:
            return {"steps": steps}
    curve = whole_curve(tiny_chain(Path(root), tiny_spec(epochs=EPOCHS)), link)
    return {
        "steps": steps,
        "digests": {part.name: part.sha256 for part in link.parts},
        "losses": [record["loss"] for record in curve],
        "center_norms": [record["center_norm"] for record in curve],
    }


def run_until_killed(group, data_folder, root, kill_step, delay_s):
    """SIGKILL this process from a timer that starts at ``kill_step``: anywhere in a step, or in a save."""

    def report(event, values):
        if event == "train_step" and values["step"] == kill_step:
            threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()

    run(group, data_folder, root, report)
    threading.Event().wait()  # the timer was late: die after the end, and prove less


def global_batch(by_rank, step):
    """The rows of a step over all ranks, and what was drawn."""
    drawn = [found["steps"][step]["drawn"] for found in by_rank]
    assert all(ids == drawn[0] for ids in drawn)
    return sorted(row for found in by_rank for row in found["steps"][step]["rows"]), drawn[0]


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_tiny_data(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed_by_two(data_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return run_ranks(partial(course, data_folder=data_folder, root=folder / "root"), 2, folder)


def killed(data_folder, root, world_size, tmp_path, *, kill_step, delay_s):
    """Start a run in other processes, kill rank 0 (or all) with SIGKILL, and return the newest link's number."""
    doomed = partial(run_until_killed, data_folder=data_folder, root=root, kill_step=kill_step, delay_s=delay_s)
    with pytest.raises(RankFailedError, match="exit code -9"):
        run_ranks(doomed, world_size, tmp_path)
    return tiny_chain(root, tiny_spec(epochs=EPOCHS)).newest().number


def check_equal(found, undisturbed):
    assert found["digests"] == undisturbed["digests"]
    assert found["losses"] == undisturbed["losses"]
    assert len(found["losses"]) == NUM_STEPS


def test_sigkill_at_a_random_time_leaves_the_bytes_of_an_undisturbed_run_at_one_rank(data_folder, tmp_path):
    dice, root = random.Random(), tmp_path / "root"
    number = killed(data_folder, root, 1, tmp_path, kill_step=dice.randint(4, 12), delay_s=dice.uniform(0, 0.05))
    assert 0 < number < NUM_STEPS
    check_equal(course(None, data_folder, root), course(None, data_folder, tmp_path / "undisturbed"))


def test_sigkill_at_a_random_time_leaves_the_bytes_of_an_undisturbed_run_at_two_ranks(
    data_folder, undisturbed_by_two, tmp_path
):
    dice, root = random.Random(), tmp_path / "root"
    number = killed(data_folder, root, 2, tmp_path, kill_step=dice.randint(4, 12), delay_s=dice.uniform(0, 0.05))
    assert 0 < number < NUM_STEPS
    found = run_ranks(partial(course, data_folder=data_folder, root=root), 2, tmp_path)
    check_equal(found[0], undisturbed_by_two[0])


def test_saved_on_two_ranks_and_resumed_on_one_or_four_it_takes_the_same_course(
    data_folder, undisturbed_by_two, tmp_path
):
    roots = [tmp_path / "to-one", tmp_path / "to-four"]
    stopped = partial(course, data_folder=data_folder, root=roots[0], stop_at_once=True)
    assert [list(found["steps"]) for found in run_ranks(stopped, 2, tmp_path)] == [[0], [0]]
    shutil.copytree(roots[0], roots[1])
    on_one = [course(None, data_folder, roots[0])]
    on_four = run_ranks(partial(course, data_folder=data_folder, root=roots[1]), 4, tmp_path)
    for by_rank in (on_one, on_four):
        assert list(by_rank[0]["steps"]) == list(range(1, NUM_STEPS))
        for step in range(1, NUM_STEPS):
            assert global_batch(by_rank, step) == global_batch(undisturbed_by_two, step)
        # sums over ranks round differently; 20 steps later they still agree
        for key in ("losses", "center_norms"):
            assert by_rank[0][key] == pytest.approx(undisturbed_by_two[0][key], rel=1e-5)


def test_every_usable_row_comes_once_per_epoch(undisturbed_by_two):
    for first_step in range(0, NUM_STEPS, STEPS_PER_EPOCH):
        steps = range(first_step, first_step + STEPS_PER_EPOCH)
        rows = [row for step in steps for row in global_batch(undisturbed_by_two, step)[0] if row != NO_ROW]
        assert len(rows) == len(set(rows)) == NUM_USABLE
