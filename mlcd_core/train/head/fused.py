"""The sharded loss as one autograd function: no B x C tensor exists, on no rank.

Each rank holds some class centers and sees the whole batch. Two numbers per row are enough for the losses of
``losses.py``, so two small exchanges are enough for the ranks:

- *Positives* by indexed dots: the rank that owns a positive's center computes its cosine, a zero stands elsewhere, and
  one all-reduce of [B, L] gives every cosine to every rank.
- *Negatives* by a log-sum-exp over tiles of this rank's sampled centers, a row's own positives masked to -inf, then
  combined over ranks. (Never log(sum over all - sum over positives): that cancels at scale 64.)

The backward recomputes each tile instead of storing it. Center gradients stay on the owning rank; feature gradients
are summed by one reduce-scatter. Centers come unnormalised and are normalised tile by tile, so that beside them only
their gradient is as big as they are.

b this rank's rows, B rows of the global batch that have a positive, G all rows of it, D dims, L label slots, T touched
centers of this rank, S sampled ones.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlcd_core.specs import HeadSpec
from mlcd_core.train.head.losses import row_losses
from mlcd_core.train.ranks import Ranks

SMALLEST_NORM = 1e-12  # as torch.nn.functional.normalize


@dataclass(frozen=True)
class Targets:
    """Where the positives and negatives of the global batch stand among this rank's touched centers; -1 is nowhere."""

    has_positive_G: Tensor
    is_positive_BL: Tensor
    touched_BL: Tensor  # the positive's position in T, where this rank owns it
    sampled_BL: Tensor  # its position in S, where this rank owns and drew it
    touched_S: Tensor  # the position in T of each sampled center


@dataclass(frozen=True)
class Tile:
    """Rows and centers of the largest block of logits: 4096 x 4096 in float32 is 64 MiB."""

    rows: int = 4096
    centers: int = 4096


@dataclass(frozen=True)
class LossSums:
    """Sums over the global batch, equal on all ranks; those of its parts add up."""

    num_rows: Tensor
    positive_cosine: Tensor
    num_positive: Tensor
    negative_cosine: Tensor
    num_negative: Tensor

    def __add__(self, other: "LossSums") -> "LossSums":
        return LossSums(*(getattr(self, name) + value for name, value in vars(other).items()))


@dataclass(frozen=True)
class LossCall:
    """What a call of the loss needs beside its differentiable arguments."""

    targets: Targets
    spec: HeadSpec
    ranks: Ranks
    tile: Tile
    mean_rows: Tensor  # what the sum of the rows' losses is divided by
    negative_weight: float  # of each negative in its row's sum


def fused_loss(
    features_bD: Tensor, centers_TD: Tensor, threshold: Tensor | None, call: LossCall
) -> tuple[Tensor, Tensor, LossSums]:
    """The mean loss of the global batch, its unit features of rows with a positive (detached), and the sums.

    features_bD are unit rows, centers_TD any. The loss is equal on all ranks, its gradients are those of that mean.
    """
    loss, features_BD, *sums = _FusedLoss.apply(features_bD, centers_TD, threshold, call)
    return loss, features_BD, LossSums(*sums)


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features_bD: Tensor, centers_TD: Tensor, threshold: Tensor | None, call: LossCall
    ) -> tuple[Tensor, ...]:
        targets, ranks = call.targets, call.ranks
        features_BD = ranks.concatenated(features_bD)[targets.has_positive_G]
        inverse_T = 1 / centers_TD.norm(dim=1).clamp(min=SMALLEST_NORM)
        own_cosine_BL = _owned_cosines(features_BD, centers_TD, inverse_T, call)
        own_lse_B, own_sums = _own_negatives(features_BD, centers_TD, inverse_T, own_cosine_BL, call)
        exchanged = ranks.summed(torch.cat([own_cosine_BL.flatten(), own_sums]))
        cosine_BL = exchanged[:-2].view_as(own_cosine_BL)
        lse_B = ranks.concatenated(own_lse_B[None]).logsumexp(dim=0)

        with torch.enable_grad():
            inputs = [lse_B + math.log(call.negative_weight), cosine_BL]
            inputs += [] if threshold is None else [threshold.detach().clone()]
            for value in inputs:
                value.requires_grad_()
            negatives_B, cosines_BL, *own_threshold = inputs
            losses_B = row_losses(call.spec, negatives_B, cosines_BL, targets.is_positive_BL, *own_threshold)
            loss = losses_B.sum() / call.mean_rows
        grad_lse_B, grad_cosine_BL, *grad_threshold = torch.autograd.grad(loss, inputs)

        ctx.save_for_backward(features_BD, centers_TD, inverse_T, lse_B, grad_lse_B, grad_cosine_BL, *grad_threshold)
        ctx.call = call
        positive_sum = torch.where(targets.is_positive_BL, cosine_BL.detach(), 0).sum()
        counts = (torch.tensor(len(features_BD)), targets.is_positive_BL.sum())
        sums = (counts[0], positive_sum, counts[1], exchanged[-2], exchanged[-1])
        outputs = (loss.detach(), features_BD, *(value.detach().clone() for value in sums))
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        features_BD, centers_TD, inverse_T, lse_B, grad_lse_B, grad_cosine_BL, *grad_threshold = ctx.saved_tensors
        call: LossCall = ctx.call
        targets, scale = call.targets, call.spec.scale
        grad_BD = torch.zeros_like(features_BD)
        grad_TD = torch.zeros_like(centers_TD)  # of the unit centers, until the end
        for row, slot in _owned_pairs(targets.touched_BL, call.tile):
            center, weight = targets.touched_BL[row, slot], grad_cosine_BL[row, slot, None]
            grad_BD.index_add_(0, row, weight * centers_TD[center] * inverse_T[center, None])
            grad_TD.index_add_(0, center, weight * features_BD[row])
        finite_lse_B = lse_B.masked_fill(lse_B == -torch.inf, 0)
        for columns, unit_SD in _unit_tiles(centers_TD, inverse_T, call):
            grad_SD = torch.zeros_like(unit_SD)
            for rows, logits in _logit_tiles(features_BD, unit_SD, columns.start, call):
                # d log-sum-exp / d cosine = scale * the logit's share of the sum
                share = logits.sub_(finite_lse_B[rows, None]).exp_().mul_(scale * grad_lse_B[rows, None])
                grad_BD[rows].addmm_(share, unit_SD)
                grad_SD.addmm_(share.T, features_BD[rows])
            grad_TD[targets.touched_S[columns]] += grad_SD
        _through_norm(grad_TD, centers_TD, inverse_T, call.tile)
        grad_GD = features_BD.new_zeros(len(targets.has_positive_G), features_BD.shape[1])
        grad_GD[targets.has_positive_G] = grad_BD * grad_loss
        threshold_gradient = grad_threshold[0] * grad_loss if grad_threshold else None
        return call.ranks.scattered_sum(grad_GD), grad_TD.mul_(grad_loss), threshold_gradient, None


def _owned_cosines(features_BD: Tensor, centers_TD: Tensor, inverse_T: Tensor, call: LossCall) -> Tensor:
    touched_BL = call.targets.touched_BL
    cosine_BL = features_BD.new_zeros(touched_BL.shape)
    for row, slot in _owned_pairs(touched_BL, call.tile):
        center = touched_BL[row, slot]
        cosine_BL[row, slot] = (features_BD[row] * centers_TD[center]).sum(dim=1) * inverse_T[center]
    return cosine_BL


def _owned_pairs(touched_BL: Tensor, tile: Tile) -> Iterator[tuple[Tensor, Tensor]]:
    """(row, slot) indices of the positives that this rank owns, ``tile.rows`` at a time."""
    for pairs in torch.split((touched_BL >= 0).nonzero(), tile.rows):
        yield pairs[:, 0], pairs[:, 1]


def _own_negatives(
    features_BD: Tensor, centers_TD: Tensor, inverse_T: Tensor, cosine_BL: Tensor, call: LossCall
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over this rank's negatives of each row; the sum and count of all their cosines."""
    is_drawn_BL = call.targets.sampled_BL >= 0
    lse_B = features_BD.new_full((len(features_BD),), -torch.inf)
    sampled_sum_D = features_BD.new_zeros(features_BD.shape[1])
    for columns, unit_SD in _unit_tiles(centers_TD, inverse_T, call):
        sampled_sum_D += unit_SD.sum(dim=0)
        for rows, logits in _logit_tiles(features_BD, unit_SD, columns.start, call):
            lse_B[rows] = torch.logaddexp(lse_B[rows], logits.logsumexp(dim=1))
    # all pairs, less the rows' own positives
    total = features_BD.sum(dim=0) @ sampled_sum_D - torch.where(is_drawn_BL, cosine_BL, 0).sum()
    count = len(features_BD) * len(call.targets.touched_S) - is_drawn_BL.sum()
    return lse_B, torch.stack([total, count.to(total.dtype)])


def _unit_tiles(centers_TD: Tensor, inverse_T: Tensor, call: LossCall) -> Iterator[tuple[slice, Tensor]]:
    """The sampled centers as unit rows, ``tile.centers`` at a time, with their place among the sampled."""
    touched_S = call.targets.touched_S
    for first in range(0, len(touched_S), call.tile.centers):
        columns = slice(first, first + call.tile.centers)
        touched = touched_S[columns]
        yield columns, centers_TD[touched].mul_(inverse_T[touched, None])


def _logit_tiles(
    features_BD: Tensor, unit_SD: Tensor, first_sampled: int, call: LossCall
) -> Iterator[tuple[slice, Tensor]]:
    """Scaled cosines of blocks of rows and one tile of sampled centers, a row's own positives at -inf."""
    for first_row in range(0, len(features_BD), call.tile.rows):
        rows = slice(first_row, first_row + call.tile.rows)
        logits = (features_BD[rows] * call.spec.scale) @ unit_SD.T
        column_BL = call.targets.sampled_BL[rows] - first_sampled
        is_here_BL = (column_BL >= 0) & (column_BL < logits.shape[1])
        # amin with +inf elsewhere: no index list, so no wait for the device
        barrier_BL = torch.where(is_here_BL, -torch.inf, torch.inf).to(logits.dtype)
        logits.scatter_reduce_(1, column_BL.clamp(0, logits.shape[1] - 1), barrier_BL, "amin")
        yield rows, logits


def _through_norm(grad_TD: Tensor, centers_TD: Tensor, inverse_T: Tensor, tile: Tile) -> None:
    """Turn, in place, the gradient of unit centers into that of the centers: (g - u (u . g)) / norm."""
    for first in range(0, len(grad_TD), tile.centers):
        part = slice(first, first + tile.centers)
        unit_TD = centers_TD[part] * inverse_T[part, None]
        along_T1 = (unit_TD * grad_TD[part]).sum(dim=1, keepdim=True)
        grad_TD[part].sub_(unit_TD.mul_(along_T1)).mul_(inverse_T[part, None])
