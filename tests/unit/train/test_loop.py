"""The loop at one rank: it learns, resumes bit for bit, keeps its curve, and stops with a reason."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from mlcd_core.errors import ConfigError, CorruptRecordError, TrainingError, TrainingStopped
from mlcd_core.events import silent
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.train import build_tower, checkpoint, load_tower, ran_on, tower_part_name, train, whole_curve
from mlcd_core.train.batches import BatchReader
from mlcd_core.train.ranks import Ranks
from mlcd_core.train.step import new_trainee
from tests.unit.train.tiny import NUM_CLASSES, NUM_USABLE, tiny_chain, tiny_spec, write_tiny_data

RUNTIME = TrainRuntime(device="cpu", checkpoint_steps=4, log_steps=2)
NUM_STEPS = 14  # 2 epochs of ceil(25 rows of the longest lane / 4)


class StoppedError(Exception):
    """Ends a run from inside its reporter."""


@pytest.fixture
def data(tmp_path):
    return write_tiny_data(tmp_path)


def run(data, root, spec=None, report=silent, runtime=RUNTIME, **more):
    spec = spec or tiny_spec()
    chain = tiny_chain(root, spec)
    return train(spec, data, num_classes=NUM_CLASSES, chain=chain, runtime=runtime, report=report, **more)


def curve(root, spec=None):
    chain = tiny_chain(root, spec or tiny_spec())
    return whole_curve(chain, chain.newest())


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
    losses = [record["loss"] for record in curve(tmp_path / "run", spec)]
    assert link.number == link.state["step"] == len(losses) == 6 * NUM_STEPS
    assert link.state["epoch"] == 12
    assert sum(losses[-7:]) < sum(losses[:7]) - 14
    names = [part.name for part in link.parts]
    assert names == [*(f"block-{i:04d}" for i in range(8)), "head", "state", "tower", "tower-optimizer"]


def test_reports_and_curve_say_the_same(data, tmp_path):
    events = []
    run(data, tmp_path / "run", report=lambda event, values: events.append((event, dict(values))))
    assert events[0] == (
        "train_start",
        {"first_step": 0, "num_steps": NUM_STEPS, "num_rows": NUM_USABLE, "classes_without_rows": 0},
    )
    steps = [values for event, values in events if event == "train_step"]
    assert steps == curve(tmp_path / "run")
    assert [record["step"] for record in steps] == [2, 4, 6, 8, 10, 12, 14]
    assert all(record["sampled_share"] == 0.5 and record["center_norm"] > 0 for record in steps)
    # an epoch is over after step 7; every class has a row
    assert [record.get("dead_centers") for record in steps] == [None, None, None, 0, 0, 0, 0]
    assert not {"mfu", "device_memory_peak_bytes", "threshold"} & steps[0].keys()
    assert all(math.isfinite(value) for record in steps for value in record.values())


@pytest.mark.parametrize("stopped_at", [2, 6, 10])
def test_a_stopped_run_ends_with_the_bytes_of_an_undisturbed_one(data, tmp_path, stopped_at):
    spec = tiny_spec(loss="mlcd_bias", ema_decay=0.9, accumulation=2, center_optimizer="dense")
    undisturbed = run(data, tmp_path / "undisturbed", spec)
    with pytest.raises(StoppedError):
        run(data, tmp_path / "stopped", spec, report=stop_at(stopped_at))
    resumed = run(data, tmp_path / "stopped", spec)
    assert digests(resumed) == digests(undisturbed)
    resumed_curve, undisturbed_curve = (curve(tmp_path / name, spec) for name in ("stopped", "undisturbed"))
    assert [r["step"] for r in resumed_curve] == [r["step"] for r in undisturbed_curve]
    assert [r["loss"] for r in resumed_curve] == [r["loss"] for r in undisturbed_curve]


def test_a_link_holds_only_what_was_logged_since_the_one_before(data, tmp_path):
    runtime = RUNTIME.model_copy(update={"log_steps": 2, "checkpoint_steps": 6})
    run(data, tmp_path / "run", runtime=runtime)
    links = tiny_chain(tmp_path / "run", tiny_spec()).links()
    assert [[record["step"] for record in link.state["curve"]] for link in links] == [[2, 4, 6], [8, 10, 12], [14]]


def test_where_steps_were_computed_is_told_by_the_links_and_the_later_of_a_link_made_again_counts(tmp_path):
    chain = tiny_chain(tmp_path, tiny_spec())
    two, one = ({"world_size": size, "threads": 1, "device": "cpu"} for size in (2, 1))
    for number, where in ((4, two), (8, two), (12, one)):
        part = chain.put("state", ".bin", f"{number} {where}".encode())
        last = chain.append(number, [part], {"ran_on": where, "curve": []})
    assert ran_on(chain, last) == [{**two, "to_step": 8}, {**one, "to_step": 12}]
    for path in (tmp_path / chain.folder.prefix / "data").iterdir():
        path.unlink()
    for number in (4, 8, 12):
        last = chain.append(
            number, [chain.put("state", ".bin", f"{number} again".encode())], {"ran_on": one, "curve": []}
        )
    assert ran_on(chain, last) == [{**one, "to_step": 12}]


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


def test_a_loss_that_is_not_finite_ends_the_run_and_saves_the_whole_batch(data, tmp_path):
    root, spec = tmp_path / "run", tiny_spec(learning_rate=1e30, warmup_share=0)
    with pytest.raises(
        TrainingError, match=r"at step \d+ the .* is (nan|inf), .* begins with \d-\d+, \d-\d+"
    ) as caught:
        run(data, root, spec, runtime=TrainRuntime(device="cpu", checkpoint_steps=1))
    [path] = root.glob("train/*/data/faulty-batch-*.json")
    assert str(path) in str(caught.value)
    saved = json.loads(path.read_text())
    with BatchReader(data, spec, Ranks(), num_classes=NUM_CLASSES) as reader:
        batch = reader.batch(saved["step"])
    assert (saved["rows"], saved["keys"]) == (batch.rows_B.tolist(), list(batch.keys))
    # the last checkpoint is of the steps before, and finite
    newest = tiny_chain(root, spec).newest()
    assert newest.number == saved["step"]
    assert all(math.isfinite(value) for record in curve(root, spec) for value in record.values())


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


def test_asked_to_stop_it_saves_at_once_and_goes_on_from_there(data, tmp_path):
    undisturbed, answers = run(data, tmp_path / "undisturbed"), iter([False, False, True])
    with pytest.raises(TrainingStopped, match="saved step 3 of 14"):
        run(data, tmp_path / "run", runtime=TrainRuntime(device="cpu", checkpoint_steps=99), stop=lambda: next(answers))
    assert tiny_chain(tmp_path / "run", tiny_spec()).newest().number == 3
    assert digests(run(data, tmp_path / "run")) == digests(undisturbed)


def test_a_stop_that_comes_with_the_last_step_is_too_late(data, tmp_path):
    steps = []
    link = run(data, tmp_path / "run", stop=lambda: steps.append(0) or len(steps) == NUM_STEPS)
    assert (link.number, len(steps)) == (NUM_STEPS, NUM_STEPS - 1)


def test_the_average_is_a_part_that_loads_as_the_tower_does(data, tmp_path):
    spec = tiny_spec(ema_decay=0.5)
    link, chain = run(data, tmp_path / "run", spec), tiny_chain(tmp_path / "run", spec)
    parts = {part.name: part for part in link.parts}
    assert (tower_part_name(spec), tower_part_name(tiny_spec())) == ("tower-ema", "tower")
    average, last = (load_tower(spec, chain.read(parts[name])).state_dict() for name in ("tower-ema", "tower"))
    distances = [float((average[name] - last[name]).norm()) for name in last]
    assert 0 < max(distances) < 0.5
    assert [part.name for part in run(data, tmp_path / "without").parts].count("tower-ema") == 0


def test_a_checkpoint_that_lacks_a_class_block_is_an_error(data, tmp_path):
    chain, spec = tiny_chain(tmp_path / "run", tiny_spec()), tiny_spec()
    with pytest.raises(StoppedError):
        run(data, tmp_path / "run", report=stop_at(6))
    newest = chain.newest()
    lacking = replace(newest, parts=tuple(part for part in newest.parts if part.name != "block-0003"))
    trainee = new_trainee(spec, num_classes=NUM_CLASSES, device=torch.device("cpu"))
    with pytest.raises(CorruptRecordError, match="no part 'block-0003', it has block-0000, "):
        checkpoint.load(trainee, chain, lacking)


def test_centers_start_from_the_centroids_of_the_classes(data, tmp_path):
    spec = tiny_spec(center_init="centroids", center_learning_rate=1e-12)
    centroids_KD = np.eye(64, dtype=np.float32)[:NUM_CLASSES]
    link = run(data, tmp_path / "run", spec, centroids_KD=centroids_KD)
    chain, blocks = tiny_chain(tmp_path / "run", spec), []
    for part in link.parts:
        if part.name.startswith("block-"):
            blocks.append(safetensors.torch.load(chain.read(part))["center"])
    centers_CD = torch.nn.functional.normalize(torch.cat(blocks))
    torch.testing.assert_close(centers_CD, torch.from_numpy(centroids_KD), rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match="got none"):
        run(data, tmp_path / "without", spec)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_of_products_is_given_back(data, tmp_path, precision):
    before = torch.get_float32_matmul_precision()
    link = run(data, tmp_path / "run", tiny_spec(precision=precision, epochs=1))
    assert link.number == NUM_STEPS // 2
    assert torch.get_float32_matmul_precision() == before
