"""Candidates from a coarse float32 matrix product, with a proven ceiling over every centroid left out.

A backend only proposes: whatever it computes with, it names candidate ids and a number that no other centroid's exact
score exceeds. ``assign`` reranks the candidates and decides whether the ceiling settles the row, so the result does not
depend on the backend. Shapes: B rows of a tile, K centroids, D dims, M candidates per row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mlcd_core.errors import ConfigError

TILE_CENTROIDS = 2048
GROUP_COLUMNS = 64
# float32 scores held at once: 4 MiB stay in the cache, fresh tiles of 32 MiB halved the speed of the product
SCORE_ELEMENTS = 2**20
FLOAT32_ROUNDOFF = 2.0**-24
# rows are at most 1 + 2^-10 long, centroids 1 + sqrt(D) 2^-25
LENGTH_PRODUCT = 1.01


@dataclass(frozen=True)
class Candidates:
    """``ids_BM`` int64; the exact score of every other centroid is at most ``ceiling_B`` (float64)."""

    ids_BM: Tensor
    ceiling_B: Tensor


def propose(points_BD: Tensor, centroids_KD: Tensor, num_candidates: int, tile_centroids: int) -> Candidates:
    """The centroids with the highest float32 scores. With ``num_candidates`` = K no other is left: ceiling -inf."""
    _check_float32_products()
    block_rows = max(1, SCORE_ELEMENTS // min(tile_centroids, len(centroids_KD)))
    blocks = [
        _search_block(rows_BD.float(), centroids_KD, num_candidates, tile_centroids)
        for rows_BD in torch.split(points_BD, block_rows)
    ]
    scores_BM = torch.cat([scores for scores, _ in blocks])
    return Candidates(torch.cat([ids for _, ids in blocks]), _ceiling(scores_BM, centroids_KD))


def _search_block(
    rows_BD: Tensor, centroids_KD: Tensor, num_candidates: int, tile_centroids: int
) -> tuple[Tensor, Tensor]:
    scores_BM = rows_BD.new_empty((len(rows_BD), 0))
    ids_BM = torch.empty((len(rows_BD), 0), dtype=torch.int64)
    for start in range(0, len(centroids_KD), tile_centroids):
        tile_scores = rows_BD @ centroids_KD[start : start + tile_centroids].T
        assert tile_scores.dtype == torch.float32, "autocast lowers the precision that the ceiling counts on"
        best = _highest(tile_scores, num_candidates)
        scores_BM = torch.cat([scores_BM, tile_scores.gather(1, best)], dim=1)
        ids_BM = torch.cat([ids_BM, best + start], dim=1)
        kept = _highest(scores_BM, num_candidates)
        scores_BM, ids_BM = scores_BM.gather(1, kept), ids_BM.gather(1, kept)
    return scores_BM, ids_BM


def _highest(scores_BK: Tensor, num_candidates: int) -> Tensor:
    num_columns = scores_BK.shape[1]
    if num_columns < 4 * num_candidates * GROUP_COLUMNS:
        return scores_BK.topk(min(num_candidates, num_columns), sorted=False).indices
    # the M highest lie in the M groups with the highest maxima, or in the rest that fills no group; 2 of 2048 columns:
    # 1.2 ms against 3.2 ms for topk over all columns (1024 rows, one thread)
    num_groups, rest = divmod(num_columns, GROUP_COLUMNS)
    groups = scores_BK[:, : num_columns - rest].view(-1, num_groups, GROUP_COLUMNS)
    group_ids_BM = groups.amax(dim=2).topk(num_candidates, sorted=False).indices
    columns = (group_ids_BM[:, :, None] * GROUP_COLUMNS + torch.arange(GROUP_COLUMNS)).flatten(1)
    columns = torch.cat([columns, torch.arange(num_columns - rest, num_columns).expand(len(columns), -1)], dim=1)
    best = scores_BK.gather(1, columns).topk(num_candidates, sorted=False).indices
    return columns.gather(1, best)


def _ceiling(scores_BM: Tensor, centroids_KD: Tensor) -> Tensor:
    num_centroids, dim = centroids_KD.shape
    if scores_BM.shape[1] == num_centroids:
        return torch.full((len(scores_BM),), -torch.inf, dtype=torch.float64)
    # what was left out scored no more than the lowest candidate, and no score is further off than the error
    return scores_BM.amin(dim=1).double() + float32_dot_error(dim)


def float32_dot_error(dim: int) -> float:
    """Bound on a float32 dot's error in any order of summation, with or without FMA: gamma_D |x| |c|.

    gamma_D = D u / (1 - D u): Higham, Accuracy and Stability of Numerical Algorithms, section 3.1. Cauchy-Schwarz
    bounds sum |x_i c_i| by |x| |c|; products are multiples of 2^-48, so nothing underflows.
    """
    assert dim < 2**20, f"no useful bound at {dim} dims"
    return dim * FLOAT32_ROUNDOFF / (1 - dim * FLOAT32_ROUNDOFF) * LENGTH_PRODUCT


def _check_float32_products() -> None:
    precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]  # absent from torch's stubs
    if precision not in ("none", "ieee"):
        raise ConfigError(
            f"float32 matrix products run in {precision} here, which the exact assignment cannot certify; expected "
            "float32: call torch.set_float32_matmul_precision('highest')"
        )
