"""One optimisation step of tower and head on one global batch, the same on any number of ranks.

The head's loss is the mean over the global batch, and each rank's backward gives its rows' share of that mean's tower
gradient: the shares are *summed* over ranks (no DDP, which would average). Tower and head are clipped together, by the
norm over all ranks' centers.
"""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mlcd_core.errors import TrainingError
from mlcd_core.specs import TrainSpec
from mlcd_core.train.batches import Batch
from mlcd_core.train.head import HeadOutput, ShardedHead
from mlcd_core.train.model import Tower, build_tower, check_tower_ranks


@dataclass(frozen=True)
class Trainee:
    """Everything that training changes, on one rank. ``gradient`` is one vector behind all tower gradients."""

    spec: TrainSpec
    tower: Tower
    optimizer: torch.optim.AdamW
    gradient: Tensor
    head: ShardedHead


@dataclass(frozen=True)
class StepResult:
    """The head's output, and the gradient norm of tower and head before clipping."""

    output: HeadOutput
    gradient_norm: float


def new_trainee(
    spec: TrainSpec,
    *,
    num_classes: int,
    device: torch.device,
    group: dist.ProcessGroup | None = None,
    dtype: torch.dtype = torch.float32,
) -> Trainee:
    """Tower and head at step 0: functions of the spec and the number of classes alone."""
    betas = (spec.beta1, spec.beta2)
    tower = build_tower(spec.tower, image_size=spec.image_size, seed=spec.seed).to(device=device, dtype=dtype)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=0.0, betas=betas, weight_decay=spec.weight_decay)
    head = ShardedHead(
        spec,
        num_classes,
        tower.dim,
        group=group,
        seed=spec.seed,
        dtype=dtype,
        device=device,
        betas=betas,
        weight_decay=spec.center_weight_decay,
    )
    check_tower_ranks(tower, spec.tower, head.ranks.size)
    return Trainee(spec, tower, optimizer, _flat_gradient(tower), head)


def train_step(trainee: Trainee, batch: Batch, *, step: int, rate_share: float) -> StepResult:
    """Forward, backward and update at ``rate_share`` of the peak learning rates; ``batch`` is this rank's rows.

    Raises TrainingError, before any update, when the loss or the gradient norm is not finite.
    """
    spec, head = trainee.spec, trainee.head
    trainee.gradient.zero_()
    features_BD = trainee.tower(batch.pixels_BCHW.to(head.device, non_blocking=True))
    output = head(features_BD, batch.positives_BL, step=step)
    _check_finite(float(output.loss.detach()), "loss", step, batch)
    output.loss.backward()  # type: ignore[no-untyped-call]
    head.ranks.summed(trainee.gradient)
    norm = _clip(trainee, spec.clip_norm)
    _check_finite(norm, "gradient norm", step, batch)
    for settings in trainee.optimizer.param_groups:
        settings["lr"] = spec.learning_rate * rate_share
    trainee.optimizer.step()
    head.step(spec.center_learning_rate * rate_share)
    return StepResult(output, norm)


def _flat_gradient(tower: nn.Module) -> Tensor:
    """One vector whose slices are the parameters' gradients: summed over ranks and clipped at once."""
    parameters = list(tower.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    flat = parameters[0].new_zeros(sum(sizes))
    for parameter, part in zip(parameters, torch.split(flat, sizes), strict=True):
        parameter.grad = part.view_as(parameter)
    return flat.detach()


def _clip(trainee: Trainee, clip_norm: float) -> float:
    head_squares = trainee.head.ranks.summed(trainee.head.gradient_TD.double().square().sum())
    norm = math.sqrt(float(head_squares + trainee.gradient.double().square().sum()))
    if norm > clip_norm:
        trainee.gradient.mul_(clip_norm / norm)
        trainee.head.gradient_TD.mul_(clip_norm / norm)
    return norm


def _check_finite(value: float, name: str, step: int, batch: Batch) -> None:
    if not math.isfinite(value):
        keys = [key for key in batch.keys if key][:5]
        raise TrainingError(
            f"the {name} of step {step} is {value}, expected a finite number; this rank's batch begins with "
            f"{', '.join(keys)}; lower train.learning_rate or train.scale, and look at these images"
        )
