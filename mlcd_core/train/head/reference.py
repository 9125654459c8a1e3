"""The dense loss in one process: the oracle that the sharded head is tested against. Shares no code with it.

B rows, D dims, C classes, L label slots, S negatives.
"""

import math

import torch
from torch import Tensor

from mlcd_core.specs import HeadSpec


def reference_loss(
    features_BD: Tensor,
    centers_CD: Tensor,
    positives_BL: Tensor,
    spec: HeadSpec,
    *,
    negatives_S: Tensor | None = None,
    threshold: Tensor | float = 0.0,
) -> Tensor:
    """Mean of the rows' losses over the rows with at least one positive, differentiable, in the features' dtype.

    positives_BL: class ids, -1 pads. negatives_S: the set of classes that may be negatives (default: all); a row's own
    positives never are. threshold: of ``mlcd_bias``. Features and centers are L2-normalised here.
    """
    unit_BD = features_BD / features_BD.norm(dim=1, keepdim=True)
    unit_CD = centers_CD / centers_CD.norm(dim=1, keepdim=True)
    cosine_BC = unit_BD @ unit_CD.T

    class_C = torch.arange(len(centers_CD), device=positives_BL.device)
    is_positive_BC = (positives_BL[:, :, None] == class_C).any(dim=1)
    is_drawn_C = torch.ones_like(class_C, dtype=torch.bool) if negatives_S is None else torch.isin(class_C, negatives_S)
    weight = len(class_C) / int(is_drawn_C.sum()) if spec.negative_weighting == "inverse_rate" else 1.0

    pull_BC = (-spec.scale * (_with_margin(cosine_BC, spec) - threshold)).masked_fill(~is_positive_BC, -torch.inf)
    push_BC = (spec.scale * (cosine_BC - threshold)).masked_fill(~is_drawn_C | is_positive_BC, -torch.inf)
    push_BC = push_BC + math.log(weight)
    push_B, zero_BC = push_BC.logsumexp(dim=1), torch.zeros_like(pull_BC)
    match spec.loss:
        case "mlcd" | "mlcd_bias":
            loss_B = _log_one_plus_sum_exp(pull_BC) + _log_one_plus_sum_exp(push_BC)
        case "mlc":
            loss_B = torch.logaddexp(zero_BC[:, 0], push_B + pull_BC.logsumexp(dim=1))
        case "softmax" | "softmax_masked":
            # the cross entropy of each positive, 0 elsewhere
            each_BC = torch.logaddexp(zero_BC, push_B[:, None] + pull_BC)
            loss_B = each_BC.sum(dim=1) / is_positive_BC.sum(dim=1).clamp(min=1)
    has_positive_B = is_positive_BC.any(dim=1)
    return loss_B[has_positive_B].sum() / max(1, int(has_positive_B.sum()))


def _with_margin(cosine_BC: Tensor, spec: HeadSpec) -> Tensor:
    if spec.margin_kind == "none":
        return cosine_BC
    if spec.margin_kind == "cosface":
        return cosine_BC - spec.margin
    angle_BC = cosine_BC.clamp(-1, 1).acos() + spec.margin
    return torch.where(angle_BC <= math.pi, angle_BC.cos(), cosine_BC - spec.margin * math.sin(spec.margin))


def _log_one_plus_sum_exp(logits_BC: Tensor) -> Tensor:
    one_B1 = logits_BC.new_zeros(len(logits_BC), 1)
    return torch.cat([one_B1, logits_BC], dim=1).logsumexp(dim=1)
