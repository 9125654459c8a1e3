"""Starting from another run: its weights come along, at another resolution too; what does not fit says so."""

from dataclasses import replace

import open_clip
import pytest
import torch

from mlcd_core.errors import ConfigError
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.train import Start, build_tower, train
from mlcd_core.train.start import begin_from, resized_positions
from mlcd_core.train.step import new_trainee
from tests.unit.train.tiny import NUM_CLASSES, TINY_VIT, tiny_chain, tiny_spec, write_tiny_data

CPU = torch.device("cpu")
RUNTIME = TrainRuntime(device="cpu")
DIGEST = "f" * 64


@pytest.fixture(autouse=True)
def tiny_vit(monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-tiny", TINY_VIT)


@pytest.fixture
def trained(tmp_path):
    """A function: (spec settings) -> (a start from that short run, its parts' tensors by part name)."""
    import safetensors.torch

    data = write_tiny_data(tmp_path)

    def run(**settings):
        spec = tiny_spec(epochs=1, **settings)
        chain = tiny_chain(tmp_path / "first", spec)
        link = train(spec, data, num_classes=NUM_CLASSES, chain=chain, runtime=RUNTIME)
        tensors = {p.name: safetensors.torch.load(chain.read(p)) for p in link.parts if p.path.endswith(".safetensors")}
        return Start(link.parts, chain.read), tensors

    return run


def begin(start, num_classes=NUM_CLASSES, **settings):
    spec = tiny_spec(start_from=DIGEST, seed=9, **settings)
    trainee = new_trainee(spec, num_classes=num_classes, device=CPU)
    return trainee, begin_from(trainee, start)


def check_tower(trainee, expected):
    for name, tensor in trainee.tower.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_tower_and_centers_come_along_and_the_optimizer_begins_anew(trained):
    start, saved = trained(loss="mlcd_bias")
    trainee, with_centers = begin(start, loss="mlcd_bias", ema_decay=0.9)
    assert with_centers
    check_tower(trainee, saved["tower"])
    assert all(torch.equal(tensor, saved["tower"][name]) for name, tensor in trainee.average.state.items())
    state = trainee.head.optimizer.state
    assert torch.equal(state.center, torch.cat([saved[f"block-{i:04d}"]["center"] for i in range(8)]))
    assert trainee.head.threshold == float(saved["head"]["threshold.center"]) != 0
    assert not trainee.optimizer.state
    assert not state.touches.any()


@pytest.mark.parametrize(("num_classes", "same_classes"), [(25, True), (NUM_CLASSES, False)])
def test_centers_of_other_classes_stay_fresh(trained, num_classes, same_classes):
    start, saved = trained()
    trainee, with_centers = begin(replace(start, same_classes=same_classes), num_classes=num_classes)
    assert not with_centers
    check_tower(trainee, saved["tower"])
    fresh = new_trainee(tiny_spec(seed=9), num_classes=num_classes, device=CPU)
    assert torch.equal(trainee.head.centers_CD, fresh.head.centers_CD)


def test_an_averaged_run_gives_its_average(trained):
    start, saved = trained(ema_decay=0.99)
    trainee, _ = begin(start)
    check_tower(trainee, saved["tower-ema"])


def test_a_vision_transformer_goes_on_at_a_higher_resolution(trained):
    start, saved = trained(tower="open_clip:ViT-tiny")
    trainee, with_centers = begin(start, tower="open_clip:ViT-tiny", image_size=24)
    assert with_centers
    positions = saved["tower"].pop("body.positional_embedding")
    found = trainee.tower.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in saved["tower"].items())
    wanted = {"visual.positional_embedding": positions.clone()}
    open_clip.model.resize_pos_embed(wanted, type("Model", (), {"visual": trainee.tower.body}))
    assert found["body.positional_embedding"].shape == (1 + 6 * 6, 32)
    torch.testing.assert_close(found["body.positional_embedding"], wanted["visual.positional_embedding"])


def test_timm_positions_are_resized_as_timm_does():
    from timm.layers import resample_abs_pos_embed

    small, large = (build_tower("timm:test_vit", image_size=size, seed=0).body for size in (32, 64))
    expected = resample_abs_pos_embed(small.pos_embed, new_size=[4, 4], num_prefix_tokens=1)
    found = resized_positions(small.pos_embed, num_prefix=1, grid=large.patch_embed.grid_size)
    assert found.shape == large.pos_embed.shape
    torch.testing.assert_close(found, expected)


def test_positions_at_their_own_size_are_kept():
    saved_TW = torch.randn(1 + 9, 5)
    torch.testing.assert_close(resized_positions(saved_TW, num_prefix=1, grid=(3, 3)), saved_TW)


def test_the_weights_of_another_tower_are_refused(trained):
    start, _ = trained()
    with pytest.raises(ConfigError, match=r"train.start_from=ffffffffffff holds other weights .*open_clip:ViT-tiny"):
        begin(start, tower="open_clip:ViT-tiny")


def test_a_run_starts_there_reports_it_once_and_resumes_its_own_link(trained, tmp_path):
    start, _ = trained()
    spec, data, records = tiny_spec(start_from=DIGEST, epochs=1), write_tiny_data(tmp_path), []

    class StoppedError(Exception):
        pass

    def report(event, values):
        records.append(values)
        if event == "train_step" and values["step"] == 4 and len(records) < 4:
            raise StoppedError

    def run(**more):
        chain = tiny_chain(tmp_path / "second", spec)
        runtime = TrainRuntime(device="cpu", log_steps=2, checkpoint_steps=2)
        return train(spec, data, num_classes=NUM_CLASSES, chain=chain, runtime=runtime, report=report, **more)

    with pytest.raises(ConfigError, match="no checkpoint to start from"):
        run()
    with pytest.raises(StoppedError):
        run(start=start)
    assert records[0]["centers_from_start"] is True
    link = run(start=start)
    resumed = records[3]
    assert (resumed["first_step"], "centers_from_start" in resumed) == (2, False)
    assert link.number == resumed["num_steps"]
    with pytest.raises(ConfigError, match=r"train.start_from='' and a checkpoint"):
        train(tiny_spec(), data, num_classes=NUM_CLASSES, chain=tiny_chain(tmp_path, tiny_spec()), start=start)
