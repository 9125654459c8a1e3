"""The dense loss in one process: the oracle that the sharded head is tested against. Shares no code with it.

B rows, D dims, C classes, L label slots, S negatives.
"""

import torch
from torch import Tensor

from mlcd_core.specs import HeadSpec


def reference_loss(
    features_BD: Tensor, centers_CD: Tensor, positives_BL: Tensor, spec: HeadSpec, *, negatives_S: Tensor | None = None
) -> Tensor:
    """Mean of the rows' losses over the rows with at least one positive, differentiable, in the features' dtype.

    positives_BL: class ids, -1 pads. negatives_S: the set of classes that may be negatives (default: all); a row's own
    positives never are. Features and centers are L2-normalised here.
    """
    unit_BD = features_BD / features_BD.norm(dim=1, keepdim=True)
    unit_CD = centers_CD / centers_CD.norm(dim=1, keepdim=True)
    cosine_BC = unit_BD @ unit_CD.T

    class_C = torch.arange(len(centers_CD), device=positives_BL.device)
    is_positive_BC = (positives_BL[:, :, None] == class_C).any(dim=1)
    is_drawn_C = torch.ones_like(class_C, dtype=torch.bool) if negatives_S is None else torch.isin(class_C, negatives_S)
    is_negative_BC = is_drawn_C & ~is_positive_BC

    positive_BC = (spec.scale * (cosine_BC - spec.margin)).masked_fill(~is_positive_BC, torch.inf)
    negative_BC = (spec.scale * cosine_BC).masked_fill(~is_negative_BC, -torch.inf)
    if spec.loss == "mlcd":
        loss_B = _log_one_plus_sum_exp(-positive_BC) + _log_one_plus_sum_exp(negative_BC)
    else:
        only_positive_B1 = positive_BC.amin(dim=1, keepdim=True)
        loss_B = _log_one_plus_sum_exp(negative_BC - only_positive_B1)
    has_positive_B = is_positive_BC.any(dim=1)
    return loss_B[has_positive_B].sum() / max(1, int(has_positive_B.sum()))


def _log_one_plus_sum_exp(logits_BC: Tensor) -> Tensor:
    one_B1 = logits_BC.new_zeros(len(logits_BC), 1)
    return torch.cat([one_B1, logits_BC], dim=1).logsumexp(dim=1)
