"""A rival to measure: Partial FC v2 with k labels per row, as k single-label margin softmaxes.

Partial FC (arXiv 2203.15565; insightface, recognition/arcface_torch/partial_fc_v2.py) has one positive per row. Its
published multi-label form (OneVision-Encoder, training/fused_partial_fc_v2_multi_res.py) runs it once per label slot:
each slot samples its own classes and holds its own B x S block of float32 logits, and a row's other positives are in
no way special. This file follows the rules of these two, in one process:

- Sampling: the slot's positives, then the largest of uniform keys up to S; the positives alone when they are more.
- Cosines of normalised features and centers, clamped to [-1, 1]; the CosFace margin taken from the target; times s.
- Softmax cross entropy written over the logits, -log(max(p, 1e-30)), with a hand-written backward (p - onehot) / B.
- One parameter holds all centers, so its gradient is dense.

The loss is the mean over the slots and its gradient is the gradient of that mean; the published code returns the
gradient of the sum, k times as large. The one-hot block that the original makes in each backward is saved here too.
Every row must have all its labels.

B rows, D dims, C classes, L label slots, S sampled classes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

INIT_STD = 0.01
FORCED_KEY = 2.0  # beyond all uniform keys
SMALLEST_PROBABILITY = 1e-30


class KSlotPartialFC(nn.Module):
    """``pfc(features_BD, labels_BL)`` is the mean loss over rows and slots; call backward on it once."""

    def __init__(
        self, num_classes: int, dim: int, *, negative_ratio: float, scale: float, margin: float, seed: int = 0
    ) -> None:
        super().__init__()
        self.num_sampled = max(1, int(negative_ratio * num_classes))
        self.scale = scale
        self.margin = margin
        self._generator = torch.Generator().manual_seed(seed)
        self.weight_CD = nn.Parameter(torch.randn(num_classes, dim, generator=self._generator) * INIT_STD)

    def forward(self, features_BD: Tensor, labels_BL: Tensor) -> Tensor:
        """The loss; every label is a class id."""
        unit_BD = functional.normalize(features_BD, dim=1)
        return torch.stack([self._slot_loss(unit_BD, labels_B) for labels_B in labels_BL.T.contiguous()]).mean()

    def sampled(self, labels_B: Tensor) -> Tensor:
        """Draw the classes of one slot, ascending."""
        positives = labels_B.unique()
        if len(positives) >= self.num_sampled:
            return positives
        keys_C = torch.rand(len(self.weight_CD), generator=self._generator)
        keys_C[positives] = FORCED_KEY
        return keys_C.topk(self.num_sampled).indices.sort().values

    def _slot_loss(self, unit_BD: Tensor, labels_B: Tensor) -> Tensor:
        weight_SD, target_B = self.weight_CD, labels_B
        if self.num_sampled < len(self.weight_CD):
            index_S = self.sampled(labels_B)
            weight_SD, target_B = self.weight_CD[index_S], torch.searchsorted(index_S, labels_B)
        logits_BS = functional.linear(unit_BD, functional.normalize(weight_SD, dim=1)).clamp(-1, 1)
        row_B = torch.arange(len(labels_B))
        logits_BS[row_B, target_B] = logits_BS[row_B, target_B] - self.margin
        loss: Tensor = _SoftmaxLoss.apply(logits_BS * self.scale, target_B)
        return loss


class _SoftmaxLoss(torch.autograd.Function):
    """Mean cross entropy that turns its logits into probabilities, and these into the gradient, in place."""

    @staticmethod
    def forward(ctx: Any, logits_BS: Tensor, target_B: Tensor) -> Tensor:
        logits_BS.sub_(logits_BS.amax(dim=1, keepdim=True)).exp_()
        logits_BS.div_(logits_BS.sum(dim=1, keepdim=True))
        ctx.save_for_backward(logits_BS, target_B)
        return logits_BS.gather(1, target_B[:, None]).clamp_(min=SMALLEST_PROBABILITY).log_().neg_().mean()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None]:
        gradient_BS, target_B = ctx.saved_tensors
        gradient_BS[torch.arange(len(target_B)), target_B] -= 1
        return gradient_BS.mul_(grad_loss / len(target_B)), None
