"""Health of the features: cheap numbers whose trend tells a run that collapses from one that learns.

Levels mean little: students start almost collapsed (mean-feature norm near 1) and good short runs end at 0.9, so an
alarm on the level would fire on them. Effective rank rises in good runs and stays low in poor ones.

B rows of the global batch, D dims.
"""

import torch
from torch import Tensor


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
