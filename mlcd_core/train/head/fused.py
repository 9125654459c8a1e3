"""The sharded loss as one autograd function: no B x C tensor exists, on no rank.

Each rank holds some class centers and sees the whole batch. Two numbers per row are enough for the losses of
``losses.py``, so two small exchanges are enough for the ranks:

- *Positives* by indexed dots: the rank that owns a positive's center computes its cosine, a zero stands elsewhere, and
  one all-reduce of [B, L] gives every cosine to every rank.
- *Negatives* by a log-sum-exp over tiles of this rank's sampled centers, a row's own positives masked to -inf, then
  combined over ranks. (Never log(sum over all - sum over positives): that cancels at scale 64.)

The backward recomputes each tile instead of storing it. Center gradients stay on the owning rank; feature gradients
are summed by one reduce-scatter.

b this rank's rows, B rows of the global batch that have a positive, G all rows of it, D dims, L label slots, T touched
centers of this rank, S sampled ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlcd_core.specs import HeadSpec
from mlcd_core.train.head.losses import LOSSES
from mlcd_core.train.ranks import Ranks


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
    """Sums over the global batch, equal on all ranks."""

    num_rows: Tensor
    positive_cosine: Tensor
    num_positive: Tensor
    negative_cosine: Tensor
    num_negative: Tensor


@dataclass(frozen=True)
class LossCall:
    """What a call of the loss needs beside its two differentiable arguments."""

    targets: Targets
    spec: HeadSpec
    ranks: Ranks
    tile: Tile


def fused_loss(features_bD: Tensor, centers_TD: Tensor, call: LossCall) -> tuple[Tensor, Tensor, LossSums]:
    """The mean loss of the global batch, its unit features of rows with a positive (detached), and the sums.

    features_bD and centers_TD are unit rows. The loss is equal on all ranks, its gradients are those of that mean.
    """
    loss, features_BD, *sums = _FusedLoss.apply(features_bD, centers_TD, call)
    return loss, features_BD, LossSums(*sums)


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features_bD: Tensor, centers_TD: Tensor, call: LossCall) -> tuple[Tensor, ...]:
        targets, spec, ranks, tile = call.targets, call.spec, call.ranks, call.tile
        features_BD = ranks.concatenated(features_bD)[targets.has_positive_G]
        sampled_SD = centers_TD[targets.touched_S]
        own_cosine_BL = _owned_cosines(features_BD, centers_TD, targets.touched_BL, tile)
        own_sums = _negative_sums(features_BD, sampled_SD, own_cosine_BL, targets.sampled_BL)
        exchanged = ranks.summed(torch.cat([own_cosine_BL.flatten(), own_sums]))
        cosine_BL = exchanged[:-2].view_as(own_cosine_BL)
        own_lse_B = _negative_lse(features_BD, sampled_SD, targets.sampled_BL, spec.scale, tile)
        lse_B = ranks.concatenated(own_lse_B[None]).logsumexp(dim=0)

        num_rows = max(1, len(features_BD))
        with torch.enable_grad():
            lse_B.requires_grad_()
            cosine_BL.requires_grad_()
            row_loss_B = LOSSES[spec.loss](lse_B, cosine_BL, targets.is_positive_BL, spec)
            loss = row_loss_B.sum() / num_rows
        grad_lse_B, grad_cosine_BL = torch.autograd.grad(loss, (lse_B, cosine_BL))

        ctx.save_for_backward(features_BD, centers_TD, lse_B.detach(), grad_lse_B, grad_cosine_BL)
        ctx.call = call
        is_positive_BL = targets.is_positive_BL
        positive_sum = torch.where(is_positive_BL, cosine_BL.detach(), 0).sum()
        sums = (torch.tensor(len(features_BD)), positive_sum, is_positive_BL.sum(), exchanged[-2], exchanged[-1])
        outputs = (loss.detach(), features_BD, *(value.detach().clone() for value in sums))
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        features_BD, centers_TD, lse_B, grad_lse_B, grad_cosine_BL = ctx.saved_tensors
        targets, scale, ranks, tile = ctx.call.targets, ctx.call.spec.scale, ctx.call.ranks, ctx.call.tile
        grad_BD = torch.zeros_like(features_BD)
        grad_TD = torch.zeros_like(centers_TD)
        for row, slot in _owned_pairs(targets.touched_BL, tile):
            center, weight = targets.touched_BL[row, slot], grad_cosine_BL[row, slot, None]
            grad_BD.index_add_(0, row, weight * centers_TD[center])
            grad_TD.index_add_(0, center, weight * features_BD[row])
        sampled_SD = centers_TD[targets.touched_S]
        grad_SD = torch.zeros_like(sampled_SD)
        finite_lse_B = lse_B.masked_fill(lse_B == -torch.inf, 0)
        for rows, columns, logits in _logit_tiles(features_BD, sampled_SD, targets.sampled_BL, scale, tile):
            # d log-sum-exp / d cosine = scale * the logit's share of the sum
            share = (logits - finite_lse_B[rows, None]).exp_() * (scale * grad_lse_B[rows, None])
            grad_BD[rows] += share @ sampled_SD[columns]
            grad_SD[columns] += share.T @ features_BD[rows]
        grad_TD[targets.touched_S] += grad_SD
        grad_GD = features_BD.new_zeros(len(targets.has_positive_G), features_BD.shape[1])
        grad_GD[targets.has_positive_G] = grad_BD * grad_loss
        return ranks.scattered_sum(grad_GD), grad_TD * grad_loss, None


def _owned_cosines(features_BD: Tensor, centers_TD: Tensor, touched_BL: Tensor, tile: Tile) -> Tensor:
    cosine_BL = features_BD.new_zeros(touched_BL.shape)
    for row, slot in _owned_pairs(touched_BL, tile):
        cosine_BL[row, slot] = (features_BD[row] * centers_TD[touched_BL[row, slot]]).sum(dim=1)
    return cosine_BL


def _owned_pairs(touched_BL: Tensor, tile: Tile) -> Iterator[tuple[Tensor, Tensor]]:
    """(row, slot) indices of the positives that this rank owns, ``tile.rows`` at a time."""
    for pairs in torch.split((touched_BL >= 0).nonzero(), tile.rows):
        yield pairs[:, 0], pairs[:, 1]


def _negative_sums(features_BD: Tensor, sampled_SD: Tensor, cosine_BL: Tensor, sampled_BL: Tensor) -> Tensor:
    """Sum and count of the cosines of this rank's negatives: all pairs, less the rows' own positives."""
    is_own_BL = sampled_BL >= 0
    total = features_BD.sum(dim=0) @ sampled_SD.sum(dim=0) - torch.where(is_own_BL, cosine_BL, 0).sum()
    count = len(features_BD) * len(sampled_SD) - is_own_BL.sum()
    return torch.stack([total, count.to(total.dtype)])


def _negative_lse(features_BD: Tensor, sampled_SD: Tensor, sampled_BL: Tensor, scale: float, tile: Tile) -> Tensor:
    lse_B = features_BD.new_full((len(features_BD),), -torch.inf)
    for rows, _, logits in _logit_tiles(features_BD, sampled_SD, sampled_BL, scale, tile):
        lse_B[rows] = torch.logaddexp(lse_B[rows], logits.logsumexp(dim=1))
    return lse_B


def _logit_tiles(
    features_BD: Tensor, sampled_SD: Tensor, sampled_BL: Tensor, scale: float, tile: Tile
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of scaled cosines of rows and sampled centers, a row's own positives at -inf."""
    for first_row in range(0, len(features_BD), tile.rows):
        rows = slice(first_row, first_row + tile.rows)
        for first_center in range(0, len(sampled_SD), tile.centers):
            columns = slice(first_center, first_center + tile.centers)
            logits = (features_BD[rows] * scale) @ sampled_SD[columns].T
            column_BL = sampled_BL[rows] - first_center
            is_here_BL = (column_BL >= 0) & (column_BL < logits.shape[1])
            # amin with +inf elsewhere: no index list, so no wait for the device
            barrier_BL = torch.where(is_here_BL, -torch.inf, torch.inf).to(logits.dtype)
            logits.scatter_reduce_(1, column_BL.clamp(0, logits.shape[1] - 1), barrier_BL, "amin")
            yield rows, columns, logits
