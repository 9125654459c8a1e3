"""What is counted of a tower without computing, against formulas by hand and against what torch really keeps."""

import ctypes
import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mlcd_core.errors import ConfigError
from mlcd_core.images.precision import Precision, autocast
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.specs import TrainSpec
from mlcd_core.tower_estimate import estimate_training
from mlcd_core.train import tower_cost
from mlcd_core.train.batches import Batch
from mlcd_core.train.model import build_tower, checkpoint_activations
from mlcd_core.train.step import new_trainee, train_step

VIT = "open_clip:ViT-S-32-alt"
WIDTH, LAYERS, TOKENS, DIM, PATCH = 384, 12, 5, 256, 32  # of its model file, at 64 pixels


def test_parameters_and_operations_of_a_vision_transformer() -> None:
    cost = tower_cost(VIT, image_size=64, precision="float32")
    embedding = 3 * PATCH**2 * WIDTH + WIDTH + TOKENS * WIDTH  # patches, class token, positions
    block = 12 * WIDTH**2 + 9 * WIDTH + 4 * WIDTH  # products and their biases, two norms
    assert cost.parameters == embedding + LAYERS * block + 4 * WIDTH + WIDTH * DIM
    products = (TOKENS - 1) * 3 * PATCH**2 * WIDTH + LAYERS * (12 * TOKENS * WIDTH**2 + 2 * TOKENS**2 * WIDTH)
    assert cost.forward_flop == 2 * (products + WIDTH * DIM)
    assert cost.dim == DIM


class Mallinfo(ctypes.Structure):
    """``struct mallinfo2`` of the C library: what of its heap and of its maps is in use."""

    _fields_ = [
        *((f"unused{place}", ctypes.c_size_t) for place in range(4)),
        ("hblkhd", ctypes.c_size_t),
        *((f"unused{place}", ctypes.c_size_t) for place in (5, 6)),
        ("uordblks", ctypes.c_size_t),
        *((f"unused{place}", ctypes.c_size_t) for place in (8, 9)),
    ]


def used_bytes() -> int:
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = Mallinfo
    found = ask()
    return int(found.uordblks + found.hblkhd)


def grown_bytes(name: str, image_size: int, precision: Precision, *, recompute: bool) -> int:
    """What the process really holds more after a forward pass of 40 images than after one of 20, for each."""
    tower = build_tower(name, image_size=image_size, seed=0)
    if recompute:
        checkpoint_activations(tower, name)
    grown = {}
    for num_images in (20, 40, 20, 40):  # the first of each size also makes what is made once
        images_BCHW = torch.zeros(num_images, 3, image_size, image_size, dtype=torch.uint8)
        before = used_bytes()
        with autocast(precision, "cpu"):
            features_BD = tower(images_BCHW)
        grown[num_images] = used_bytes() - before
        assert features_BD.requires_grad  # or nothing would be kept
        del features_BD
    return (grown[40] - grown[20]) // 20


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "image_size"), [("conv-tiny", 32), (VIT, 64), ("timm:test_vit", 64)])
def test_what_is_kept_for_the_backward_pass_is_what_torch_keeps(
    name: str, image_size: int, precision: Precision, recompute: bool
) -> None:
    counted = tower_cost(name, image_size=image_size, precision=precision, recompute=recompute).kept_bytes
    assert counted == pytest.approx(grown_bytes(name, image_size, precision, recompute=recompute), rel=0.1)


class Peak(TorchDispatchMode):
    """The most that is in use after any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.bytes = max(self.bytes, used_bytes())
        return result


@pytest.mark.parametrize(
    ("settings", "recompute"),
    [
        ({"tower": "timm:test_vit", "image_size": 160, "batch_size": 128}, False),
        ({"tower": VIT, "image_size": 160, "batch_size": 64, "precision": "bfloat16"}, False),
        # few rows at a time, many centers
        ({"tower": VIT, "image_size": 64, "batch_size": 64, "accumulation": 4}, True),
    ],
)
def test_memory_of_a_step_is_what_was_estimated(settings: dict[str, Any], recompute: bool) -> None:
    spec = TrainSpec(**settings, lanes=1, num_positive=4)
    rows, size, classes = spec.batch_size, spec.image_size, 50_000
    batch = Batch(
        pixels_BCHW=torch.zeros(rows, 3, size, size, dtype=torch.uint8),
        positives_BL=torch.arange(4 * rows).view(rows, 4),
        rows_B=torch.arange(rows),
        keys=("",) * rows,
    )
    before = used_bytes()
    trainee = new_trainee(spec, num_classes=classes, device=torch.device("cpu"), recompute_activations=recompute)
    train_step(trainee, batch, step=0, rate_share=1.0)  # makes what is made once
    with Peak() as peak:
        train_step(trainee, batch, step=1, rate_share=1.0)

    cost = tower_cost(spec.tower, image_size=size, precision=spec.precision, recompute=recompute)
    runtime = TrainRuntime(checkpoint_activations=recompute)
    memory = estimate_training(cost, spec, runtime, num_rows=1, num_classes=classes).worker_memory
    assert memory is not None
    assert memory.total_bytes == pytest.approx(
        peak.bytes - before, rel=0.12
    )  # a gradient or two of activations is not counted


def test_a_tower_of_a_billion_needs_no_memory_to_be_counted() -> None:
    before = torch.random.get_rng_state()
    cost = tower_cost("open_clip:ViT-g-14", image_size=224, precision="bfloat16", recompute=True)
    assert cost.parameters == pytest.approx(1.012e9, rel=0.01)
    assert cost.forward_flop == pytest.approx(2 * 290e9, rel=0.1)  # 581 GFLOP
    assert math.isclose(cost.kept_bytes, 40 * 257 * 1408 * 2, rel_tol=0.3)  # the input of each block
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_name_that_no_tower_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        tower_cost("open_clip:ViT-B-31", image_size=224, precision="float32")
