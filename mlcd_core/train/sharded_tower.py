"""FSDP2: a tower whose weights, gradients and moments are split over the ranks, for one that does not fit a device.

Every tensor that is trained becomes a DTensor, split along dim 0. It is put together where it is used: one transformer
block at a time, the rest of the tower for the whole of a forward and backward pass. FSDP itself sums the gradients over
ranks after each backward pass, so pieces of a batch need no more memory. On disk there are whole tensors only: a
checkpoint does not say how it was trained. Each rank first builds the whole tower in host memory.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

# what open_clip and timm call a list of transformer blocks
BLOCK_LISTS = ("resblocks", "blocks")


def shard_tower(tower: nn.Module, device: torch.device, group: dist.ProcessGroup | None) -> None:
    """Split a tower over the ranks of ``group`` and bring it to ``device``, block by block."""
    group = group or dist.group.WORLD
    assert group is not None, "one rank has nothing to split"
    mesh = DeviceMesh.from_group(group, device.type)
    for module in (*transformer_blocks(tower), tower):
        shard = fully_shard(module, mesh=mesh)
        # a sum, not the mean; gloo has no reduction with a factor, not even with 1, unless a plain sum is asked for
        shard.set_gradient_divide_factor(1.0)
        shard.set_force_sum_reduction_for_comms(True)


def transformer_blocks(tower: nn.Module) -> list[nn.Module]:
    """The modules to put together on their own, inner ones first; none in a tower without such blocks."""
    lists = [module for name, module in tower.named_modules() if name.rpartition(".")[2] in BLOCK_LISTS]
    return [block for blocks in reversed(lists) for block in blocks.children()]


def is_sharded(tower: nn.Module) -> bool:
    """Whether FSDP splits the tower and sums its gradients."""
    return isinstance(tower, FSDPModule)


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, in its memory and without padding; all of it where it is not split."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_own_part(part: Tensor, tensor: Tensor) -> Tensor:
    """The tensor, split like ``tensor``, of which this rank holds ``part``."""
    if not isinstance(tensor, DTensor):
        return part
    return DTensor.from_local(part, tensor.device_mesh, tensor.placements, shape=tensor.shape, stride=tensor.stride())


def split_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """``whole``, which every rank has, split like ``tensor``; unchanged where that is not split."""
    if not isinstance(tensor, DTensor):
        return whole
    # a copy, since a part that is a view would keep the whole in memory
    return distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None).clone()


def load_whole(tower: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Load whole tensors under the names of the tower's state dict."""
    own = tower.state_dict()
    tower.load_state_dict({name: split_like(whole, own[name]) for name, whole in saved.items()})


def whole_tensors(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The tensors put together, one after the other, in host memory of the ranks that ``keep`` them; all call it."""
    kept = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            kept[name] = whole.detach().cpu()
    return kept
