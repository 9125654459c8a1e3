"""Health of the run: cheap numbers whose trend tells a run that collapses from one that learns.

Levels mean little: students start almost collapsed (mean-feature norm near 1) and good short runs end at 0.9, so an
alarm on the level would fire on them. Effective rank rises in good runs and stays low in poor ones.

B rows of the global batch, C classes, D dims, L positives per row.
"""

import torch
from torch import Tensor

from mlcd_core.train.head import ShardedHead
from mlcd_core.train.ranks import Ranks


def feature_watches(features_BD: Tensor) -> dict[str, float]:
    """``feature_mean_norm`` (1 when all features are equal) and ``effective_rank`` of unit features.

    The effective rank (Roy and Vetterli, 2007) is exp of the entropy of the covariance's normalised eigenvalues.
    """
    mean_D = features_BD.double().mean(dim=0)
    centred_BD = features_BD.double() - mean_D
    variance_D = torch.linalg.eigvalsh(centred_BD.T @ centred_BD).clamp(min=0)
    share_D = variance_D / variance_D.sum().clamp(min=torch.finfo(torch.float64).tiny)
    entropy = torch.special.entr(share_D).sum()
    return {"feature_mean_norm": float(mean_D.norm()), "effective_rank": float(entropy.exp())}


def head_watches(head: ShardedHead) -> dict[str, float]:
    """``center_norm``, the mean over all ranks' centers, and the ``threshold`` of ``mlcd_bias``; all ranks call it."""
    norm_sum = head.ranks.summed(head.centers_CD.norm(dim=1).double().sum())
    watches = {"center_norm": float(norm_sum) / head.num_classes}
    return watches | ({"threshold": head.threshold} if head.spec.loss == "mlcd_bias" else {})


class DeadCenters:
    """Counts the classes that were no row's positive in the last whole epoch: nothing pulls their centers.

    ``count`` is None until an epoch was seen from its first step. An epoch reads each row once, so the count can only
    fall below the classes without rows if rows change, and rise above it if rows are lost.
    """

    def __init__(self, num_classes: int, ranks: Ranks, device: torch.device) -> None:
        self.count: int | None = None
        self._ranks = ranks
        self._device = device
        self._pulled_C = torch.zeros(num_classes, dtype=torch.bool)

    def add(self, positives_BL: Tensor) -> None:
        """Note the positives of this rank's rows."""
        self._pulled_C[positives_BL[positives_BL >= 0]] = True

    def end_epoch(self, *, whole: bool) -> None:
        """Count, where the ``whole`` epoch was seen, and begin again; all ranks call it."""
        if whole:
            num_ranks_C = self._ranks.summed(self._pulled_C.to(self._device, torch.int32))
            self.count = int((num_ranks_C == 0).sum())
        self._pulled_C.zero_()
