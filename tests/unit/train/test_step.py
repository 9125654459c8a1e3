"""One step: pieces, precision, recomputation and compilation change how it is computed, not what comes out."""

import shutil

import open_clip
import pytest
import torch
from torch import nn

from mlcd_core.errors import ConfigError, TrainingError
from mlcd_core.train import step as step_module
from mlcd_core.train.model import Tower, build_tower, checkpoint_activations
from mlcd_core.train.step import NotFiniteError, new_trainee, train_step
from tests.unit.train.head_cases import relative
from tests.unit.train.tiny import BATCH_ROWS, NUM_CLASSES, TINY_VIT, global_batch, tiny_spec

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny_vit(monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-tiny", TINY_VIT)


def trained(*, num_steps=3, dtype=torch.float32, recompute_activations=False, **settings):
    """(tower weights, centers, losses) after a few steps."""
    spec = tiny_spec(batch_size=BATCH_ROWS, **settings)
    trainee = new_trainee(
        spec, num_classes=NUM_CLASSES, device=CPU, dtype=dtype, recompute_activations=recompute_activations
    )
    results = [train_step(trainee, global_batch(step), step=step, rate_share=1.0) for step in range(num_steps)]
    tower = torch.cat([tensor.detach().flatten() for tensor in trainee.tower.state_dict().values()])
    return tower, trainee.head.centers_CD, torch.tensor([float(result.output.loss) for result in results])


@pytest.mark.parametrize("loss", ["mlcd", "mlcd_bias"])
@pytest.mark.parametrize("pieces", [2, 8])
def test_pieces_give_the_weights_of_the_whole_batch(pieces, loss):
    whole, in_pieces = (trained(dtype=torch.float64, accumulation=n, loss=loss) for n in (1, pieces))
    for found, expected in zip(in_pieces, whole, strict=True):
        assert relative(found, expected) <= 1e-10


def test_pieces_that_do_not_cut_the_rows_are_refused_with_those_that_do():
    with pytest.raises(TrainingError, match=r"the 16 rows of a rank .* set it to one of \[1, 2, 4, 8, 16\]"):
        trained(accumulation=3)


def test_batch_norm_is_refused_for_pieces():
    trained(tower="timm:test_resnet", num_steps=1)
    with pytest.raises(TrainingError, match=r"BatchNorm and got 1 ranks with train.accumulation=2"):
        trained(tower="timm:test_resnet", accumulation=2)


@pytest.mark.parametrize("tower", ["conv-tiny", "open_clip:ViT-tiny"])
def test_bfloat16_is_near_float32_and_keeps_float32_weights(tower):
    exact, rounded = (trained(tower=tower, precision=precision) for precision in ("float32", "bfloat16"))
    assert {tensor.dtype for tensor in rounded} == {torch.float32}
    assert 0 < relative(rounded[0], exact[0]) < 0.03
    assert 0 < relative(rounded[2], exact[2]) < 0.03


@pytest.mark.parametrize("tower", ["conv-tiny", "open_clip:ViT-tiny", "timm:test_vit"])
def test_recomputed_activations_change_no_bit(tower):
    stored, recomputed = (trained(tower=tower, recompute_activations=on) for on in (False, True))
    for found, expected in zip(recomputed, stored, strict=True):
        assert torch.equal(found, expected)


def bytes_stored(tower, images_BCHW):
    """What autograd keeps for the backward pass of one forward, weights aside."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in tower.state_dict().values()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tower(images_BCHW)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(("tower", "share"), [("conv-tiny", 0.7), ("open_clip:ViT-tiny", 0.4)])
def test_recomputed_activations_are_not_stored(tower, share):
    images_BCHW = global_batch(0).pixels_BCHW
    stored, recomputed = (build_tower(tower, image_size=16, seed=0) for _ in range(2))
    checkpoint_activations(recomputed, tower)
    assert bytes_stored(recomputed, images_BCHW) < share * bytes_stored(stored, images_BCHW)


@pytest.mark.parametrize(
    "body", [nn.Flatten(), open_clip.modified_resnet.ModifiedResNet((1, 1, 1, 1), 8, 2, image_size=32, width=8)]
)
def test_a_tower_that_cannot_recompute_is_refused(body):
    with pytest.raises(ConfigError, match="the tower some-tower cannot recompute"):
        checkpoint_activations(Tower(body, 8), "some-tower")


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler, g++, on CPU")
def test_a_compiled_tower_learns_the_same_under_the_same_names(monkeypatch):
    def small_tower(name, *, image_size, seed):
        torch.manual_seed(seed)
        return Tower(nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, 8)), 8)

    monkeypatch.setattr(step_module, "build_tower", small_tower)  # conv-tiny compiles for 50 s
    trainee = new_trainee(tiny_spec(compile=True), num_classes=NUM_CLASSES, device=CPU)
    plain = new_trainee(tiny_spec(), num_classes=NUM_CLASSES, device=CPU)
    assert trainee.tower.state_dict().keys() == plain.tower.state_dict().keys()
    assert trainee.encode is not trainee.tower
    for each in (trainee, plain):
        train_step(each, global_batch(0), step=0, rate_share=1.0)
    for name, tensor in trainee.tower.state_dict().items():
        torch.testing.assert_close(tensor, plain.tower.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_not_finite_changes_no_weight(where):
    trainee = new_trainee(tiny_spec(ema_decay=0.9, center_weight_decay=0.0), num_classes=NUM_CLASSES, device=CPU)
    train_step(trainee, global_batch(0), step=0, rate_share=1.0)
    if where == "loss":
        trainee.tower.body[-1].register_forward_hook(lambda module, args, out: out * torch.nan)
    else:
        next(trainee.tower.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    before = [tensor.clone() for tensor in (*trainee.tower.state_dict().values(), trainee.head.centers_CD)]
    averaged = {name: tensor.clone() for name, tensor in trainee.average.state.items()}
    with pytest.raises(NotFiniteError, match=f"the {where}.* is (nan|inf)"):
        train_step(trainee, global_batch(1), step=1, rate_share=1.0)
    after = (*trainee.tower.state_dict().values(), trainee.head.centers_CD)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(tensor, trainee.average.state[name]) for name, tensor in averaged.items())
