"""Starting from another run: its tower's weights, and its class centers where they mean the same classes.

Beside an ordinary warm start this is the paper's last phase at a higher resolution: a vision transformer's position
embeddings are resized when train.image_size differs, the optimizer begins anew.

T tokens, W width.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mlcd_core.errors import ConfigError
from mlcd_core.store import Part
from mlcd_core.train import checkpoint
from mlcd_core.train.model import Tower
from mlcd_core.train.sharded_tower import load_whole
from mlcd_core.train.step import Trainee


@dataclass(frozen=True)
class Start:
    """The parts of another run's last checkpoint, as its manifest lists them.

    ``same_classes``: class k of that run is class k here, since both have the labels of one clustering.
    """

    parts: tuple[Part, ...]
    read: Callable[[Part], bytes]
    same_classes: bool = True


def begin_from(trainee: Trainee, start: Start) -> bool:
    """Take over the tower's weights, the averaged ones where there are such; True where the centers came along.

    The centers, and the threshold of ``mlcd_bias``, come along when the classes and their number are the same.
    Raises ConfigError for the weights of another tower.
    """
    parts = {part.name: part for part in start.parts}
    tower_part = checkpoint.EMA_PART if checkpoint.EMA_PART in parts else checkpoint.TOWER_PART
    _load_weights(trainee, checkpoint.part_tensors(start.read, parts, tower_part))
    if trainee.average is not None:
        trainee.average.restart(trainee.tower)
    head, state = trainee.head, json.loads(checkpoint.part_bytes(start.read, parts, checkpoint.STATE_PART))
    if not start.same_classes or state["num_classes"] != head.num_classes:
        return False
    for block in checkpoint.filled_blocks(head):
        saved = checkpoint.part_tensors(start.read, parts, checkpoint.block_name(block))
        head.block_state(block)["center"].copy_(saved["center"])
    common = checkpoint.part_tensors(start.read, parts, checkpoint.HEAD_PART)
    if head.threshold_optimizer and "threshold.center" in common:
        head.threshold_optimizer.state.center.copy_(common["threshold.center"])
    return True


def resized_positions(saved: Tensor, *, num_prefix: int, grid: tuple[int, int]) -> Tensor:
    """Position embeddings [..., T, W] of a square grid behind ``num_prefix`` other tokens, at another grid size."""
    prefix, image = saved[..., :num_prefix, :], saved[..., num_prefix:, :].reshape(-1, saved.shape[-1])
    side = math.isqrt(len(image))
    maps = image.T.reshape(1, -1, side, side).float()
    resized = functional.interpolate(maps, size=grid, mode="bicubic", antialias=True)
    flat = resized.flatten(2)[0].T.to(saved.dtype)
    return torch.cat([prefix, flat.reshape(*prefix.shape[:-2], -1, saved.shape[-1])], dim=-2)


def _load_weights(trainee: Trainee, saved: dict[str, Tensor]) -> None:
    tower, key = trainee.tower, f"train.start_from={trainee.spec.start_from[:12]}"
    name = _position_name(tower)
    own = tower.state_dict()
    if name in saved and saved[name].shape != own[name].shape:
        num_prefix, grid = _token_layout(tower)
        saved[name] = resized_positions(saved[name], num_prefix=num_prefix, grid=grid)
    differing = sorted(
        name
        for name in own.keys() | saved.keys()
        if name not in own or name not in saved or saved[name].shape != own[name].shape
    )
    if differing:
        raise ConfigError(
            f"{key} holds other weights than train.tower={trainee.spec.tower}, image_size {trainee.spec.image_size}: "
            f"{len(differing)} tensors differ, the first is {differing[0]}; set train.tower as in that run"
        )
    load_whole(tower, saved)


def _position_name(tower: Tower) -> str:
    """Where the learned position embeddings of open_clip's, or timm's, vision transformers stand."""
    if hasattr(tower.body, "positional_embedding"):
        return "body.positional_embedding"
    return "body.trunk.pos_embed" if hasattr(tower.body, "trunk") else "body.pos_embed"


def _token_layout(tower: Tower) -> tuple[int, tuple[int, int]]:
    """How many tokens stand before those of the image, and the grid of the latter."""
    if hasattr(tower.body, "positional_embedding"):
        return 1, _grid(tower.body)
    trunk: Any = getattr(tower.body, "trunk", tower.body)
    num_prefix = 0 if getattr(trunk, "no_embed_class", False) else getattr(trunk, "num_prefix_tokens", 0)
    return num_prefix, _grid(trunk.patch_embed)


def _grid(module: Any) -> tuple[int, int]:
    rows, columns = module.grid_size
    return int(rows), int(columns)
