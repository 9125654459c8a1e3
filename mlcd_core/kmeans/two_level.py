"""The nearest centroid among those of a few groups: a small part of the work, and nearly always the same answer.

The centroids are clustered themselves, into about sqrt(K) groups, and a row looks at the centroids of its ``probes``
nearest groups alone. Rows and centroids are rounded to int8 once. Products of whole numbers are exact in any order, so
the groups of a row depend on no machine, tile or thread. Within them it gets the exact best, equal scores by the lower
id: where others come within the rounding error of the best rounded score, float64 decides among them.

Shapes: B rows of a tile, K centroids, G groups, M centroids of one group, D dims, P pairs of a row and a centroid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from mlcd_core.hashing import splitmix64
from mlcd_core.kmeans.assign import Assigner
from mlcd_core.kmeans.centroids import next_centroids
from mlcd_core.kmeans.exact import GRID_STEP
from mlcd_core.kmeans.look import Found, Look, exact_find
from mlcd_core.kmeans.points import ArrayPoints
from mlcd_core.kmeans.ranks import Ranks
from mlcd_core.kmeans.rounds import RowSummer
from mlcd_core.kmeans.shortlist import Shortlist, best_of, offsets
from mlcd_core.kmeans.state import CentroidState
from mlcd_core.kmeans.tile_search import INT8_STEPS, ROUNDING, positions

GROUP_ITERATIONS = 5
# CUDA divides by a number as by this, and the CPU does not: so that both get the same steps
STEP_SHARE = 1 / INT8_STEPS
# float32 copies of so many rows stay in the cache: 1.7 times as fast as a whole tile
QUANTISED_ROWS = 512
MOST_SLACK = 2.0**30  # more than any two scores differ


class TwoLevel:
    """Prepares one set of centroids: float32 unit rows on the grid; points must be on their device.

    ``probes`` above the number of groups are all groups. ``seed`` chooses the centroids that the groups start from.
    """

    def __init__(self, centroids_KD: Tensor, *, probes: int, seed: int) -> None:
        self._centroids_KD = centroids_KD
        groups = group_centroids(centroids_KD, seed)
        self._members = groups.members
        self._probes = min(probes, len(groups.members))
        # scores of all centroids move alike when their mean is taken off, and what is left is smaller
        mean_D = (centroids_KD.sum(dim=0, dtype=torch.float64) / len(centroids_KD)).float()
        self._group_values_DG = _rounded_alike(groups.centers_GD, mean_D).values.T.contiguous()
        rounded = _rounded_alike(centroids_KD, mean_D)
        self._values_DM = [rounded.values[ids_M].T.contiguous() for ids_M in groups.members]
        self._step = rounded.step
        self._longest, self._most_lost = rounded.longest, rounded.most_lost

    @property
    def num_groups(self) -> int:
        """Groups that hold a centroid."""
        return len(self._members)

    def nearest(self, points_BD: Tensor) -> Found:
        """The best centroid in the probed groups of each float16 unit row."""
        values_BD, step_B, lost_B = _rounded_each(points_BD)
        error_B = 1.01 * lost_B * self._longest + 1.01 * self._most_lost + ROUNDING
        # a score and the best may both be wrong, in opposite directions
        slack_B = (2.01 * error_B / (step_B * self._step)).ceil().clamp(max=MOST_SLACK).int() + 1
        groups_BP = self._nearest_groups(values_BD)
        # few centroids of the other groups come near the best of the nearest one
        needed_B = self._best_scores(groups_BP[:, 0], values_BD) - slack_B
        rows_P, ids_P, scores_P = self._reaching(groups_BP, values_BD, needed_B)
        best_B = needed_B.scatter_reduce(0, rows_P, scores_P, "amax")
        kept_P = scores_P >= (best_B - slack_B)[rows_P]
        return Found(self._best(points_BD, rows_P[kept_P], ids_P[kept_P]).int())

    def _nearest_groups(self, values_BD: Tensor) -> Tensor:
        num_groups = len(self._members)
        scores_BG = _products(values_BD, self._group_values_DG).long()
        # equal scores by the lower group: the numbers to compare are all different
        reversed_G = torch.arange(num_groups - 1, -1, -1, device=values_BD.device)
        best_BP = (scores_BG * num_groups + reversed_G).topk(self._probes).values
        return num_groups - 1 - best_BP % num_groups

    def _best_scores(self, groups_B: Tensor, values_BD: Tensor) -> Tensor:
        """The best score of each row in one group."""
        best_B = torch.empty(len(values_BD), dtype=torch.int32, device=values_BD.device)
        for rows_R, values_DM in zip(self._by_group(groups_B[:, None]), self._values_DM, strict=True):
            if len(rows_R) > 0:
                best_B[rows_R] = _products(values_BD.index_select(0, rows_R), values_DM).amax(dim=1)
        return best_B

    def _reaching(self, groups_BP: Tensor, values_BD: Tensor, needed_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, centroid ids, scores) of the pairs whose score is what the row needs, or more."""
        found = []
        for rows_R, ids_M, values_DM in zip(self._by_group(groups_BP), self._members, self._values_DM, strict=True):
            if len(rows_R) == 0:
                continue
            scores_RM = _products(values_BD.index_select(0, rows_R), values_DM)
            hits_P = positions(scores_RM >= needed_B.index_select(0, rows_R)[:, None])
            hit_rows_P = hits_P // len(ids_M)
            hit_ids_P = ids_M.index_select(0, hits_P - hit_rows_P * len(ids_M))
            found.append((rows_R.index_select(0, hit_rows_P), hit_ids_P, scores_RM.flatten().index_select(0, hits_P)))
        rows_P, ids_P, scores_P = (torch.cat(column) for column in zip(*found, strict=True))
        return rows_P, ids_P, scores_P

    def _by_group(self, groups_BP: Tensor) -> Sequence[Tensor]:
        """The rows that look at each group."""
        counts_G = torch.bincount(groups_BP.flatten(), minlength=len(self._members))
        rows = groups_BP.flatten().argsort(stable=True) // groups_BP.shape[1]
        return torch.split(rows, counts_G.tolist())

    def _best(self, points_BD: Tensor, rows_P: Tensor, ids_P: Tensor) -> Tensor:
        num_centroids = len(self._centroids_KD)
        pairs_P = (rows_P * num_centroids + ids_P).sort().values
        rows_P, ids_P = pairs_P // num_centroids, pairs_P % num_centroids
        counts_B = torch.bincount(rows_P, minlength=len(points_BD))
        best_B = ids_P[offsets(counts_B)[:-1]]
        open_B = counts_B > 1
        shortlist = Shortlist(
            offsets(counts_B[open_B]), ids_P[open_B[rows_P]], torch.zeros(int(open_B.sum()), device=ids_P.device)
        )
        best_B[open_B] = best_of(points_BD[open_B], self._centroids_KD, shortlist, 1)[0][:, 0]
        return best_B


@dataclass(frozen=True)
class Groups:
    """Groups of centroids: their centers, and the ascending ids of each one's centroids, at least one."""

    centers_GD: Tensor
    members: list[Tensor]


def group_centroids(centroids_KD: Tensor, seed: int) -> Groups:
    """Cluster the centroids into about sqrt(K) groups, from hash-ranked ones; the same groups on every machine."""
    points, device = ArrayPoints(centroids_KD), centroids_KD.device
    num_groups = isqrt(len(centroids_KD))
    start = splitmix64(seed, torch.arange(len(centroids_KD))).argsort(stable=True)[:num_groups]
    # not fit: centroids may be equal, and four of each group need not be there
    state = CentroidState.start(centroids_KD.cpu()[start], points.num_rows)
    summer = RowSummer(points, Ranks(None), done_B=torch.zeros(len(points.blocks), dtype=torch.bool), device=device)
    for _ in range(GROUP_ITERATIONS):
        sums = summer.sum(state, Look(points.num_rows, exact_find(Assigner(state.centroids_KD.to(device)))))
        assert sums is not None
        state = CentroidState.start(next_centroids(sums.sums_KD, sums.counts_K, state.centroids_KD), points.num_rows)
    centers_GD = state.centroids_KD.to(device)
    assigner = Assigner(centers_GD)
    groups_K = torch.cat([assigner.nearest(tile.to(device)).ids_NL[:, 0] for _, tile in points.tiles(summer.tile_rows)])
    counts_G = torch.bincount(groups_K, minlength=num_groups)
    members = torch.split(groups_K.argsort(stable=True), counts_G.tolist())
    return Groups(centers_GD[counts_G > 0], [ids_M for ids_M in members if len(ids_M) > 0])


@dataclass(frozen=True)
class _Rounded:
    """Int8 values times one step, the longest row, and the most that rounding took from one."""

    values: Tensor
    step: Tensor
    longest: Tensor
    most_lost: Tensor


def _rounded_alike(rows_KD: Tensor, mean_D: Tensor) -> _Rounded:
    """Rounds the rows without their mean, in chunks: float32 copies of all centroids are too much at a million."""
    chunks = torch.split(rows_KD, QUANTISED_ROWS)
    highest = torch.stack([(rows_CD - mean_D).abs().amax() for rows_CD in chunks]).amax()
    step = highest.clamp(min=GRID_STEP) * STEP_SHARE
    values, longest, lost = [], [], []
    for rows_CD in chunks:
        scaled_CD = (rows_CD - mean_D).div_(step)
        longest.append(torch.linalg.vector_norm(scaled_CD, dim=1).amax())
        values_CD = scaled_CD.round()
        lost.append(torch.linalg.vector_norm(scaled_CD.sub_(values_CD), dim=1).amax())
        values.append(values_CD.to(torch.int8))
    most_lost = torch.stack(lost).amax() * step
    return _Rounded(torch.cat(values), step, torch.stack(longest).amax() * step + most_lost, most_lost)


def _rounded_each(points_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Int8 values, each row's step, and the length of what rounding took away."""
    parts = [_rounded_rows(rows_CD.float()) for rows_CD in torch.split(points_BD, QUANTISED_ROWS)]
    values_BD, step_B, lost_B = (torch.cat(column) for column in zip(*parts, strict=True))
    return values_BD, step_B, lost_B


def _rounded_rows(rows_CD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    step_C = rows_CD.abs().amax(dim=1) * STEP_SHARE
    scaled_CD = rows_CD.div_(step_C[:, None])
    values_CD = scaled_CD.round()
    lost_C = torch.linalg.vector_norm(scaled_CD.sub_(values_CD), dim=1) * step_C
    return values_CD.to(torch.int8), step_C, lost_C


def _products(left_BD: Tensor, right_DM: Tensor) -> Tensor:
    """Products of int8 matrices as int32, exact in any order of summation."""
    if left_BD.device.type == "cpu" and torch.cpu._is_vnni_supported():
        return torch._int_mm(left_BD, right_DM)
    fits = left_BD.shape[1] * INT8_STEPS**2 < 2**24
    dtype = torch.float32 if fits else torch.float64
    return (left_BD.to(dtype) @ right_DM.to(dtype)).int()
