"""One optimisation step of tower and head on one global batch, the same on any number of ranks.

The head's loss is the mean over the global batch, and each rank's backward gives its rows' share of that mean's tower
gradient: the shares are *summed* over ranks (no DDP, which would average). Likewise a rank's rows may go through the
tower in pieces, whose gradients add up. Tower and head are clipped together, by the norm over all ranks' centers
and, where the tower is split too (``sharded_tower``), over all ranks' parts of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mlcd_core.errors import TrainingError
from mlcd_core.specs import TrainSpec, check_sharding
from mlcd_core.train.average import TowerAverage
from mlcd_core.train.batches import Batch
from mlcd_core.train.center_init import initial_centers
from mlcd_core.train.head import AdamWSettings, HeadOutput, ShardedHead, combined
from mlcd_core.train.model import Tower, build_tower, check_batch_norm, checkpoint_activations
from mlcd_core.train.ranks import Ranks
from mlcd_core.train.sharded_tower import as_own_part, is_sharded, own_part, shard_tower


@dataclass(frozen=True)
class Trainee:
    """Everything that training changes, on one rank.

    ``encode`` is the tower, compiled where the spec says so. ``gradient`` is one vector behind all tower gradients,
    those of this rank's part of a sharded tower.
    """

    spec: TrainSpec
    tower: Tower
    encode: Callable[[Tensor], Tensor]
    optimizer: torch.optim.AdamW
    gradient: Tensor
    head: ShardedHead
    average: TowerAverage | None


@dataclass(frozen=True)
class StepResult:
    """The head's output, and the gradient norm of tower and head before clipping."""

    output: HeadOutput
    gradient_norm: float


class NotFiniteError(TrainingError):
    """A loss or gradient norm that is not finite, on all ranks alike; ``quantity`` says which and what it is."""

    def __init__(self, quantity: str) -> None:
        super().__init__(f"{quantity}, expected a finite number")
        self.quantity = quantity


def new_trainee(
    spec: TrainSpec,
    *,
    num_classes: int,
    device: torch.device,
    group: dist.ProcessGroup | None = None,
    dtype: torch.dtype = torch.float32,
    centroids_KD: np.ndarray | None = None,
    recompute_activations: bool = False,
    sharded: bool = False,
) -> Trainee:
    """Tower and head at step 0: functions of the spec, the number of classes and the centroids alone.

    sharded: split the tower over the ranks; with one rank it changes nothing.
    Raises TrainingError for ranks and ``train.accumulation`` that do not fit the batch or the tower, ConfigError for
    settings that exclude each other.
    """
    check_sharding(sharded=sharded, compiled=spec.compile)
    betas = (spec.beta1, spec.beta2)
    tower = build_tower(spec.tower, image_size=spec.image_size, seed=spec.seed).to(dtype=dtype)
    if recompute_activations:
        checkpoint_activations(tower, spec.tower)
    if sharded and Ranks(group).size > 1:
        shard_tower(tower, device, group)
    else:
        tower.to(device)
    head = ShardedHead(
        spec,
        num_classes,
        tower.dim,
        group=group,
        seed=spec.seed,
        dtype=dtype,
        device=device,
        adamw=AdamWSettings(spec.center_optimizer, betas, weight_decay=spec.center_weight_decay),
        initial_centers=initial_centers(spec, centroids_KD, num_classes=num_classes, dim=tower.dim),
    )
    check_batch_norm(tower, spec.tower, world_size=head.ranks.size, accumulation=spec.accumulation)
    _check_accumulation(spec, head.ranks.size)
    trained = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    return Trainee(
        spec=spec,
        tower=tower,
        encode=torch.compile(tower) if spec.compile else tower,
        optimizer=torch.optim.AdamW(
            trained,
            lr=0.0,
            betas=betas,
            weight_decay=spec.weight_decay,
            # where parameters are sharded torch would by itself update one after the other, also on CUDA
            foreach=is_sharded(tower) or None,
        ),
        gradient=_flat_gradient(trained),
        head=head,
        average=TowerAverage(tower, spec.ema_decay) if spec.ema_decay > 0 else None,
    )


def train_step(trainee: Trainee, batch: Batch, *, step: int, rate_share: float) -> StepResult:
    """Forward, backward and update at ``rate_share`` of the peak learning rates; ``batch`` is this rank's rows.

    Raises NotFiniteError, before any update and on all ranks, when the loss or the gradient norm is not finite.
    """
    spec, head = trainee.spec, trainee.head
    trainee.gradient.zero_()
    head.begin(batch.positives_BL, step=step)
    piece_rows = len(batch.positives_BL) // spec.accumulation
    outputs = []
    for first in range(0, len(batch.positives_BL), piece_rows):
        rows = slice(first, first + piece_rows)
        output = head.loss(_features(trainee, batch.pixels_BCHW[rows]), rows)
        output.loss.backward()  # type: ignore[no-untyped-call]
        outputs.append(output)
    output = combined(outputs)
    norm = math.sqrt(float(head.gradient_square_sum() + _tower_square_sum(trainee)))
    _check_finite(float(output.loss), "loss")
    _check_finite(norm, "gradient norm")
    if norm > spec.clip_norm:
        trainee.gradient.mul_(spec.clip_norm / norm)
        head.scale_gradients(spec.clip_norm / norm)
    for settings in trainee.optimizer.param_groups:
        settings["lr"] = spec.learning_rate * rate_share
    trainee.optimizer.step()
    head.step(spec.center_learning_rate * rate_share)
    if trainee.average is not None:
        trainee.average.update(trainee.tower, step)
    return StepResult(output, norm)


def _check_accumulation(spec: TrainSpec, world_size: int) -> None:
    rank_rows = spec.batch_size // world_size
    if rank_rows % spec.accumulation:
        fitting = [pieces for pieces in range(1, rank_rows + 1) if rank_rows % pieces == 0]
        raise TrainingError(
            f"train.accumulation={spec.accumulation} cannot cut the {rank_rows} rows of a rank (train.batch_size="
            f"{spec.batch_size}, {world_size} ranks) into equal pieces; set it to one of {fitting}"
        )


def _flat_gradient(parameters: list[nn.Parameter]) -> Tensor:
    """One vector whose slices are the parameters' gradients: summed over ranks and clipped at once."""
    own = [own_part(parameter.detach()) for parameter in parameters]
    sizes = [tensor.numel() for tensor in own]
    flat = own[0].new_zeros(sum(sizes))
    for parameter, tensor, part in zip(parameters, own, torch.split(flat, sizes), strict=True):
        parameter.grad = as_own_part(part.view_as(tensor), parameter)
    return flat


def _tower_square_sum(trainee: Trainee) -> Tensor:
    """Of the gradient over all ranks, which is summed first where the tower is not sharded: FSDP has done it there."""
    ranks, sharded = trainee.head.ranks, is_sharded(trainee.tower)
    if not sharded:
        ranks.summed(trainee.gradient)
    square_sum = trainee.gradient.double().square().sum()
    return ranks.summed(square_sum) if sharded else square_sum


def _features(trainee: Trainee, pixels_BCHW: Tensor) -> Tensor:
    """Features of some rows; bfloat16 where the spec says so, which the head takes back to the centers' type."""
    device = trainee.head.device
    # cached bfloat16 copies would keep weights that a sharded tower has let go
    cached, enabled = not is_sharded(trainee.tower), trainee.spec.precision == "bfloat16"
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=cached):
        return trainee.encode(pixels_BCHW.to(device))


def _check_finite(value: float, name: str) -> None:
    if not math.isfinite(value):
        raise NotFiniteError(f"the {name} is {value}")
