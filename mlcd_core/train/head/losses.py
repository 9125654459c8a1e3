"""The losses, from what all ranks know of a row: its positives' cosines and the log-sum-exp of its negatives.

B rows that have a positive, L label slots. A positive's logit is z_i = s * margin(cos_i), a negative's z_j = s * cos_j.
The negatives come in as ``negatives_B`` = A = log(sum_j exp(z_j)), -inf for a row that has none, so every loss here
costs B * L and works for any number of classes and ranks.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mlcd_core.specs import HeadSpec

RowLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
Margin = Callable[[Tensor, float], Tensor]


def row_losses(
    spec: HeadSpec,
    negatives_B: Tensor,
    cosines_BL: Tensor,
    is_positive_BL: Tensor,
    threshold: Tensor | None = None,
) -> Tensor:
    """The loss of each row, differentiable in its tensors.

    threshold: of ``mlcd_bias``, the learned cosine between positives and negatives; all logits are lowered by s times
    it. (The bias of SigLIP, arXiv 2303.15343, in units of the cosine.)
    """
    logits_BL = spec.scale * MARGINS[spec.margin_kind](cosines_BL, spec.margin)
    if threshold is not None:
        logits_BL = logits_BL - spec.scale * threshold
        negatives_B = negatives_B - spec.scale * threshold
    return LOSSES[spec.loss](negatives_B, logits_BL, is_positive_BL)


def mlcd(negatives_B: Tensor, logits_BL: Tensor, is_positive_BL: Tensor) -> Tensor:
    """log(1 + sum_i exp(-z_i)) + log(1 + sum_j exp(z_j)): Eq. 5 of MLCD, arXiv 2407.17331.

    Two separate terms with a fixed threshold at cosine 0: positives are pulled above it, negatives pushed below.
    """
    return log_one_plus_exp(_pull(logits_BL, is_positive_BL)) + log_one_plus_exp(negatives_B)


def mlc(negatives_B: Tensor, logits_BL: Tensor, is_positive_BL: Tensor) -> Tensor:
    """log(1 + sum_j exp(z_j) * sum_i exp(-z_i)): Eq. 4 of MLCD, the form of Circle loss (arXiv 2002.10857).

    Only differences of positive and negative logits count.
    """
    return log_one_plus_exp(negatives_B + _pull(logits_BL, is_positive_BL))


def softmax_masked(negatives_B: Tensor, logits_BL: Tensor, is_positive_BL: Tensor) -> Tensor:
    """Mean over the positives i of log(1 + sum_j exp(z_j - z_i)).

    One cross entropy per positive, against the negatives alone: the row's other positives are in no denominator.
    """
    each_BL = log_one_plus_exp(negatives_B[:, None] - logits_BL)
    return torch.where(is_positive_BL, each_BL, 0).sum(dim=1) / is_positive_BL.sum(dim=1)


def softmax(negatives_B: Tensor, logits_BL: Tensor, is_positive_BL: Tensor) -> Tensor:
    """log(1 + sum_j exp(z_j - z_i)): Eq. 3 of MLCD, the cross entropy of the row's only positive i, as in UNICOM."""
    return softmax_masked(negatives_B, logits_BL, is_positive_BL)


def cosface(cosines: Tensor, margin: float) -> Tensor:
    """cos - m (CosFace, arXiv 1801.09414)."""
    return cosines - margin


def arcface(cosines: Tensor, margin: float) -> Tensor:
    """cos(theta + m) (ArcFace, arXiv 1801.07698) with its exact gradient, sin(theta + m) / sin(theta).

    Where theta + m > pi the cosine would rise again; there it is cos(theta) - m * sin(m), as in ArcFace's own code.
    (That code takes the margin without autograd, so its gradient is 1 everywhere.)
    """
    # at cos = +-1 the slope of the sine is infinite, and the features' tangent is 0
    sines = (1 - cosines.square()).clamp(min=torch.finfo(cosines.dtype).eps).sqrt()
    turned = cosines * math.cos(margin) - sines * math.sin(margin)
    return torch.where(cosines > -math.cos(margin), turned, cosines - margin * math.sin(margin))


def no_margin(cosines: Tensor, margin: float) -> Tensor:
    """cos; ``margin`` is not used."""
    del margin
    return cosines


def log_one_plus_exp(logits: Tensor) -> Tensor:
    """log(1 + exp(x)). Not F.softplus: that is x beyond its threshold of 20, off by 2e-9."""
    return torch.logaddexp(logits, torch.zeros_like(logits))


def _pull(logits_BL: Tensor, is_positive_BL: Tensor) -> Tensor:
    """log(sum_i exp(-z_i)) over a row's positives."""
    return torch.where(is_positive_BL, -logits_BL, -torch.inf).logsumexp(dim=1)


LOSSES: dict[str, RowLoss] = {
    "mlcd": mlcd,
    "mlcd_bias": mlcd,  # of logits that the threshold has lowered
    "mlc": mlc,
    "softmax": softmax,
    "softmax_masked": softmax_masked,
}
MARGINS: dict[str, Margin] = {"cosface": cosface, "arcface": arcface, "none": no_margin}
