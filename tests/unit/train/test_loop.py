"""The loop at one rank: it learns, resumes bit for bit, keeps its curve, and stops with a reason."""

import math
from itertools import pairwise

import pytest
import torch

from mlcd_core.errors import ConfigError, CorruptRecordError, TrainingError
from mlcd_core.events import silent
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.train import build_tower, load_tower, train
from mlcd_core.train import loop as loop_module
from mlcd_core.train.loop import schedule
from tests.unit.train.tiny import NUM_CLASSES, NUM_USABLE, tiny_chain, tiny_spec, write_tiny_data

RUNTIME = TrainRuntime(device="cpu", checkpoint_steps=4, log_steps=2)
NUM_STEPS = 14  # 2 epochs of ceil(25 rows of the longest lane / 4)


class StoppedError(Exception):
    """Ends a run from inside its reporter."""


@pytest.fixture
def data(tmp_path):
    return write_tiny_data(tmp_path)


def run(data, root, spec=None, report=silent, runtime=RUNTIME):
    spec = spec or tiny_spec()
    return train(spec, data, num_classes=NUM_CLASSES, chain=tiny_chain(root, spec), runtime=runtime, report=report)


def digests(link):
    return {part.name: part.sha256 for part in link.parts}


def stop_at(step):
    def report(event, values):
        if event == "train_step" and values["step"] >= step:
            raise StoppedError

    return report


def test_the_last_link_is_the_end_state_and_the_loss_falls(data, tmp_path):
    spec = tiny_spec(epochs=12, augment="none")
    link = run(data, tmp_path / "run", spec, runtime=TrainRuntime(device="cpu", log_steps=1))
    losses = [record["loss"] for record in link.state["curve"]]
    assert link.number == link.state["step"] == len(losses) == 6 * NUM_STEPS
    assert link.state["epoch"] == 12
    assert sum(losses[-7:]) < sum(losses[:7]) - 14
    names = [part.name for part in link.parts]
    assert names == [*(f"block-{i:04d}" for i in range(8)), "center-decay", "state", "tower", "tower-optimizer"]


def test_reports_and_curve_say_the_same(data, tmp_path):
    events = []
    link = run(data, tmp_path / "run", report=lambda event, values: events.append((event, dict(values))))
    assert events[0] == (
        "train_start",
        {"first_step": 0, "num_steps": NUM_STEPS, "num_rows": NUM_USABLE, "classes_without_rows": 0},
    )
    steps = [values for event, values in events if event == "train_step"]
    assert steps == link.state["curve"]
    assert [record["step"] for record in steps] == [2, 4, 6, 8, 10, 12, 14]
    assert all(math.isfinite(value) for record in steps for value in record.values())


@pytest.mark.parametrize("stopped_at", [2, 6, 10])
def test_a_stopped_run_ends_with_the_bytes_of_an_undisturbed_one(data, tmp_path, stopped_at):
    undisturbed = run(data, tmp_path / "undisturbed")
    with pytest.raises(StoppedError):
        run(data, tmp_path / "stopped", report=stop_at(stopped_at))
    resumed = run(data, tmp_path / "stopped")
    assert digests(resumed) == digests(undisturbed)
    assert [r["step"] for r in resumed.state["curve"]] == [r["step"] for r in undisturbed.state["curve"]]
    assert [r["loss"] for r in resumed.state["curve"]] == [r["loss"] for r in undisturbed.state["curve"]]


def test_the_checkpoint_interval_changes_no_byte(data, tmp_path):
    often = run(data, tmp_path / "often", runtime=TrainRuntime(device="cpu", checkpoint_steps=2, log_steps=1))
    seldom = run(data, tmp_path / "seldom", runtime=TrainRuntime(device="cpu", checkpoint_steps=99, log_steps=50))
    assert digests(often) == digests(seldom)


def test_a_finished_chain_is_returned_as_it_is(data, tmp_path):
    first = run(data, tmp_path / "run")
    assert run(data, tmp_path / "run") == first


def test_a_link_that_lost_a_part_falls_back_to_the_one_before(data, tmp_path):
    chain_root, spec = tmp_path / "run", tiny_spec()
    undisturbed = run(data, tmp_path / "undisturbed")
    with pytest.raises(StoppedError):
        run(data, chain_root, report=stop_at(10))
    newest = tiny_chain(chain_root, spec).newest()
    (chain_root / next(part.path for part in newest.parts if part.name == "block-0003")).unlink()
    assert tiny_chain(chain_root, spec).newest().number < newest.number
    assert digests(run(data, chain_root)) == digests(undisturbed)


def test_a_changed_part_is_an_error(data, tmp_path):
    with pytest.raises(StoppedError):
        run(data, tmp_path / "run", report=stop_at(6))
    newest = tiny_chain(tmp_path / "run", tiny_spec()).newest()
    path = tmp_path / "run" / newest.parts[0].path
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(CorruptRecordError, match=r"block-0000.* cannot be trusted"):
        run(data, tmp_path / "run")


def test_a_checkpoint_of_another_clustering_is_refused(data, tmp_path):
    spec = tiny_spec()
    with pytest.raises(StoppedError):
        run(data, tmp_path / "run", report=stop_at(6))
    with pytest.raises(TrainingError, match="num_classes 24, expected 25"):
        train(spec, data, num_classes=25, chain=tiny_chain(tmp_path / "run", spec), runtime=RUNTIME)


def test_a_loss_that_is_not_finite_names_the_step_and_the_keys(data, tmp_path, monkeypatch):
    real = loop_module.new_trainee

    def poisoned(*args, **kwargs):
        trainee = real(*args, **kwargs)
        with torch.no_grad():
            next(trainee.tower.parameters()).fill_(math.nan)
        return trainee

    monkeypatch.setattr(loop_module, "new_trainee", poisoned)
    with pytest.raises(TrainingError, match=r"the loss of step 0 is nan.* \d-\d+, \d-\d+"):
        run(data, tmp_path / "run")
    assert tiny_chain(tmp_path / "run", tiny_spec()).newest() is None


def test_softmax_needs_one_positive(data, tmp_path):
    with pytest.raises(ConfigError, match=r"train.num_positive=1"):
        run(data, tmp_path / "run", tiny_spec(loss="softmax"))
    assert run(data, tmp_path / "run", tiny_spec(loss="softmax", num_positive=1)).number == NUM_STEPS


def test_the_trained_tower_loads_from_its_part_and_differs_from_the_untrained(data, tmp_path):
    spec = tiny_spec()
    link = run(data, tmp_path / "run")
    part = next(part for part in link.parts if part.name == "tower")
    tower = load_tower(spec, tiny_chain(tmp_path / "run", spec).read(part))
    untrained = build_tower(spec.tower, image_size=spec.image_size, seed=spec.seed)
    assert not tower.training
    assert any(not torch.equal(tensor, untrained.state_dict()[name]) for name, tensor in tower.state_dict().items())


def test_threads_are_given_back(data, tmp_path):
    before = torch.get_num_threads()
    run(data, tmp_path / "run", runtime=TrainRuntime(device="cpu", threads=before + 1))
    assert torch.get_num_threads() == before


def test_schedule_warms_up_then_falls_to_zero():
    shares = [schedule(step, 100, 0.1) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == shares[10] == 1.0
    assert all(a > b for a, b in pairwise(shares[10:]))
    assert 0 < shares[-1] < 0.001
    assert [schedule(step, 1, 0.1) for step in range(1)] == [1.0]
