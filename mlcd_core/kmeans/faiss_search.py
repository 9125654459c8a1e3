"""Candidates from faiss's exhaustive inner-product search, on the CPU or a GPU.

An independent implementation under the same certificate. Against the others it is simple and needs no tuning, but it
multiplies float32 where they multiply int8 or float16, and it holds its own float32 copy of the centroids.

Shapes: B rows of a tile, K centroids, D dims, M candidates per row.
"""

from typing import Any

import torch
from torch import Tensor

from mlcd_core.errors import ConfigError
from mlcd_core.kmeans.shortlist import Shortlist, float32_dot_error


class FaissSearch:
    """Proposes candidates among one set of centroids.

    ``centroids_KD`` float32 unit rows on the grid, on any device; a copy of them stays on ``device``, cpu or cuda.
    ``spare`` is how many candidates a row gets beyond the labels asked for. Raises ConfigError when no faiss for
    ``device`` is installed.
    """

    def __init__(self, centroids_KD: Tensor, device: torch.device | str, *, spare: int = 1) -> None:
        assert spare >= 0, f"{spare} spare candidates"
        self.num_centroids, dim = centroids_KD.shape
        self.spare = spare
        # faiss adds in blocks and with FMA, which the bound allows; TF32 it does not use
        self._score_error = float32_dot_error(dim)
        self._index = _empty_index(dim, torch.device(device))
        self._index.add(centroids_KD.cpu().numpy())

    def propose(self, points_BD: Tensor, num_labels: int) -> Shortlist:
        """The ``num_labels + spare`` centroids with the highest float32 scores, on the device of the float16 rows.

        When that is K or more, these are all centroids, and no other is left: ceiling -inf.
        """
        num_candidates = min(num_labels + self.spare, self.num_centroids)
        scores_BM, ids_BM = map(torch.from_numpy, self._index.search(points_BD.float().cpu().numpy(), num_candidates))
        assert bool((ids_BM >= 0).all()), "faiss found fewer candidates than there are centroids"
        if num_candidates == self.num_centroids:
            ceiling_B = torch.full((len(points_BD),), -torch.inf, dtype=torch.float64)
        else:
            # what was left out scored no more than the lowest candidate, and no score is further off than the error
            ceiling_B = scores_BM.amin(dim=1).double() + self._score_error
        return Shortlist.of_columns(ids_BM.to(points_BD.device), ceiling_B.to(points_BD.device))


def _empty_index(dim: int, device: torch.device) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            f"the faiss search needs faiss, which is not installed; expected faiss-cpu or faiss-gpu: install mlcd with "
            f"the extra {'gpu' if device.type == 'cuda' else 'cpu'}, or take another search"
        ) from error
    if device.type == "cpu":
        return faiss.IndexFlatIP(dim)
    if device.type != "cuda" or not hasattr(faiss, "StandardGpuResources"):
        raise ConfigError(
            f"the installed faiss {faiss.__version__} cannot search on {device}; expected cpu, or cuda with faiss-gpu: "
            "install mlcd with the extra gpu instead of cpu, or take another search"
        )
    config = faiss.GpuIndexFlatConfig()
    config.device = device.index or 0
    config.useFloat16 = False
    config.use_cuvs = False  # its kernels may split float32 into TF32 parts
    return faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), dim, config)
