"""What a tower costs, counted on one without memory for it: its parameters, operations, and what a backward pass keeps.

Nothing is computed: the tower is built on the device ``meta`` and run on fake tensors of a CPU, whose attention keeps
as little as the fused kernels of GPUs do.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mlcd_core.images.precision import Precision, autocast
from mlcd_core.tower_estimate import TowerCost
from mlcd_core.train.flops import forward_flops
from mlcd_core.train.model import Tower, build_tower, checkpoint_activations


def tower_cost(name: str, *, image_size: int, precision: Precision, recompute: bool = False) -> TowerCost:
    """Count a tower by its name. recompute: its activations in the backward pass.

    Raises ConfigError for a name that no tower has, and for one that cannot recompute.
    """
    with torch.device("meta"):
        tower = build_tower(name, image_size=image_size, seed=0)
    flop = forward_flops(tower, image_size)
    if recompute:
        checkpoint_activations(tower, name)
    with FakeTensorMode(allow_non_fake_inputs=True):
        tower.to_empty(device="cpu")
        # what does not grow with the images is weights, and their copies in another precision
        one, two = (_kept_bytes(tower, image_size, num_images, precision) for num_images in (1, 2))
    return TowerCost(
        dim=tower.dim,
        parameters=sum(parameter.numel() for parameter in tower.parameters()),
        forward_flop=flop,
        kept_bytes=two - one,
    )


def _kept_bytes(tower: Tower, image_size: int, num_images: int, precision: Precision) -> int:
    """Bytes of all tensors that a backward pass of so many images needs."""
    images_BCHW = torch.empty(num_images, 3, image_size, image_size, dtype=torch.uint8)
    kept: dict[int, int] = {}
    with _seen(kept), autocast(precision, "cpu"):
        tower(images_BCHW)
    return sum(kept.values())


@contextmanager
def _seen(kept: dict[int, int]) -> Iterator[None]:
    """Note the storage of each tensor that autograd saves: two views of one count once."""

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield
