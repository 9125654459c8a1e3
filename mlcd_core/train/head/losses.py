"""The losses, from what all ranks know of a row: its positives' cosines and the log-sum-exp of its negatives.

B rows that have a positive, L label slots. With unit features and centers, scale s and margin m (CosFace: subtracted
from the cosine of positives), a negative's logit is s*cos, a positive's s*(cos - m). ``negatives_B`` is
log(sum of exp(s*cos)) over the row's sampled negatives, -inf when it has none.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mlcd_core.specs import HeadSpec

RowLoss = Callable[[Tensor, Tensor, Tensor, HeadSpec], Tensor]


def mlcd(negatives_B: Tensor, cosines_BL: Tensor, is_positive_BL: Tensor, spec: HeadSpec) -> Tensor:
    """log(1 + sum_pos exp(-s_i)) + log(1 + sum_neg exp(s_j)): Eq. 5 of MLCD, arXiv 2407.17331.

    Two separate terms with a fixed threshold at cosine 0: positives are pulled above it, negatives pushed below.
    """
    logits_BL = spec.scale * (cosines_BL - spec.margin)
    positives_B = torch.where(is_positive_BL, -logits_BL, -torch.inf).logsumexp(dim=1)
    return log_one_plus_exp(positives_B) + log_one_plus_exp(negatives_B)


def softmax(negatives_B: Tensor, cosines_BL: Tensor, is_positive_BL: Tensor, spec: HeadSpec) -> Tensor:
    """log(1 + sum_neg exp(s_j - s_i)): Eq. 3 of MLCD, the cross entropy of the row's only positive i, as in UNICOM."""
    assert is_positive_BL.shape[1] == 1, "softmax has one positive per row"
    logits_B = spec.scale * (cosines_BL[:, 0] - spec.margin)
    return log_one_plus_exp(negatives_B - logits_B)


def log_one_plus_exp(logits: Tensor) -> Tensor:
    """log(1 + exp(x)). Not F.softplus: that is x beyond its threshold of 20, off by 2e-9."""
    return torch.logaddexp(logits, torch.zeros_like(logits))


LOSSES: dict[str, RowLoss] = {"mlcd": mlcd, "softmax": softmax}
