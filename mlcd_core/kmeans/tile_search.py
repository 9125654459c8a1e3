"""Shortlists from coarse scores of whole tiles, read twice: their maxima first, then the few groups that can matter.

A matrix product of rounded rows and rounded centroids gives coarse scores. The lengths of what rounding took away bound
their error (Cauchy-Schwarz), so ``score + error`` is an upper bound on the exact score. Selection is the slow part of
such a search (``topk`` over all columns took longer than the product), so only the maximum of each group of 32 columns
is computed, and columns are looked at in groups whose upper bound reaches the L-th best score less a little slack.

Centroids are rounded after their mean is taken off: it moves all scores of a row alike, and what is left is smaller.
Shapes: B rows, K centroids, G groups of columns, D dims, L labels per row, P pairs of a row and a candidate.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mlcd_core.errors import ConfigError
from mlcd_core.kmeans.shortlist import Shortlist, float32_dot_error, offsets

Precision = Literal["int8", "bfloat16", "float16", "float32"]

# a row with more candidates than this share of the centroids is cheaper to search again in float32
CROWD_SHARE = 16
GROUP_BITS = 5
GROUP = 1 << GROUP_BITS
TILE_CENTROIDS = 8192
# scores held at once, 32 MiB: fewer make more calls of small operations, and those took a third of the time
SCORE_ELEMENTS = 2**23
INT8_STEPS = 127
# the float32 arithmetic around the scores is off by less than this, in cosine: that of steps, lengths and losses too
ROUNDING = 2.0**-18
UNIT_ROUNDOFF = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
# tensor cores may truncate where the bound counts on rounding, and add in blocks
ACCUMULATION = 4.0


def best_precision(device: torch.device) -> Precision:
    """What is fastest here: int8 on CPUs that multiply it exactly (VNNI), else float32; float16 on CUDA."""
    if device.type == "cuda":
        return "float16"
    return "int8" if torch.cpu._is_vnni_supported() else "float32"


class TileSearch:
    """Searches one set of centroids, which are rounded once. ``precision`` decides the time, never the result."""

    def __init__(self, centroids_KD: Tensor, precision: Precision, tile_centroids: int = TILE_CENTROIDS) -> None:
        _check_products(precision, centroids_KD.device)
        self._centroids_KD = centroids_KD
        self._precision = precision
        self._num_groups = -(-len(centroids_KD) // GROUP)
        self._tile_groups = min(max(1, tile_centroids // GROUP), self._num_groups)
        # float32 is close enough, and then takes the centroids as they are
        self._mean_D = centroids_KD.mean(dim=0) if precision != "float32" else torch.zeros_like(centroids_KD[0])
        # rounding errors are independent, so the real error is about 1/sqrt(D) of the bound; float32 can afford it all,
        # and twice more for the scores that ``best_ids`` compares with the ceiling
        self._slack = min(1.0, 2.5 / centroids_KD.shape[1] ** 0.5) if precision != "float32" else 2.5
        # a group has one step, so centroids with elements of about one size stand together
        self._order_K = (centroids_KD - self._mean_D).abs().amax(dim=1).argsort() if precision == "int8" else None
        self._tiles = [self._tile(first) for first in range(0, self._num_groups, self._tile_groups)]
        self._block_rows = max(1, SCORE_ELEMENTS // (self._tile_groups * GROUP))
        # one buffer for all products: new pages for each of them cost a fifth of its time
        self._scores = torch.empty(0, dtype=torch.int32 if precision == "int8" else self._tiles[0].values_KD.dtype)
        self._scores = self._scores.to(centroids_KD.device)

    def propose(self, points_BD: Tensor, num_labels: int) -> Shortlist:
        """Candidates for the top L of float16 unit rows; a row with too many of them gets none and no ceiling."""
        blocks = torch.split(points_BD, self._block_rows)
        with _float32_sums():
            found = [self._search_block(rows_BD.float(), num_labels) for rows_BD in blocks]
        return Shortlist(
            offsets(torch.cat([block.counts_B for block in found])),
            torch.cat([block.ids_P for block in found]),
            torch.cat([block.ceiling_B for block in found]),
        )

    def _tile(self, first_group: int) -> "_Tile":
        last_group = min(first_group + self._tile_groups, self._num_groups)
        ids_K = torch.arange(first_group * GROUP, last_group * GROUP, device=self._centroids_KD.device)
        if self._precision == "float32" and last_group * GROUP <= len(self._centroids_KD):
            rows_KD = self._centroids_KD[first_group * GROUP : last_group * GROUP]
        else:
            # the last group is filled up with the last centroid
            ids_K = ids_K.clamp(max=len(self._centroids_KD) - 1)
            ids_K = ids_K if self._order_K is None else self._order_K[ids_K]
            rows_KD = self._centroids_KD[ids_K] - self._mean_D
        highest_G = rows_KD.abs().view(last_group - first_group, -1).amax(dim=1)
        step_G = _steps(highest_G, self._precision)
        values_KD, lost_K = _rounded(rows_KD, step_G.repeat_interleave(GROUP), self._precision)
        length_K = torch.linalg.vector_norm(rows_KD, dim=1) + lost_K
        length_G = length_K.view(-1, GROUP).amax(dim=1)
        lost_G = 1.01 * lost_K.view(-1, GROUP).amax(dim=1) + ROUNDING
        return _Tile(first_group, values_KD, step_G, length_G, lost_G)

    def _search_block(self, rows_BD: Tensor, num_labels: int) -> Shortlist:
        """Candidates among all tiles.

        A column's exact score is at most its score times both steps plus its error. The bar of a row is its L-th best
        group maximum so far less a slack, and every column whose upper bound reaches the bar becomes a candidate. So no
        other column scores above the last bar: it is the ceiling, whatever the slack. A slack too small costs a second
        search of the row, one too large more candidates. All is in units of the row's step: products need no scaling.
        """
        step_B = _steps(rows_BD.abs().amax(dim=1), self._precision)
        values_BD, lost_B = _rounded(rows_BD, step_B, self._precision)
        # a score's error is at most the first number times the centroid's length plus the second times its loss
        error_B = 1.01 * lost_B + _arithmetic_error(self._precision, rows_BD.shape[1])
        error_B2 = (torch.stack([error_B, torch.ones_like(step_B)]) / step_B).T
        best_BL = rows_BD.new_full((len(rows_BD), num_labels), -torch.inf)
        bar_B = rows_BD.new_full((len(rows_BD),), -torch.inf)
        crowded_B = torch.zeros(len(rows_BD), dtype=torch.bool, device=rows_BD.device)
        # with fewer groups than labels every centroid is a candidate, and that is not too many
        most = max(16 * num_labels + 64, GROUP * num_labels, len(self._centroids_KD) // CROWD_SHARE)
        found = []
        for tile in self._tiles:
            scores_BGC = self._product(values_BD, tile.values_KD).view(len(rows_BD), len(tile.step_G), GROUP)
            maxima_BG = scores_BGC.amax(dim=2)
            best_BL = _highest(best_BL, maxima_BG * tile.step_G, num_labels)
            bar_B = torch.maximum(bar_B, best_BL.amin(dim=1) - self._slack * (error_B2 @ tile.most_error_2))
            needed_BG = tile.needed(bar_B, error_B2, scores_BGC.dtype)
            chosen_P = positions(maxima_BG >= needed_BG)
            num_chosen_B = torch.bincount(chosen_P // len(tile.step_G), minlength=len(rows_BD))
            crowded_B |= num_chosen_B > most
            if crowded_B.any():
                chosen_P = chosen_P[~crowded_B[chosen_P // len(tile.step_G)]]
            found.append(_look_into(scores_BGC, chosen_P, needed_BG, tile))
        pairs = found[0] if len(found) == 1 else _joined(found, self._tiles, bar_B, error_B2)
        crowded_B |= torch.bincount(pairs.rows_P, minlength=len(rows_BD)) > most
        if len(self._centroids_KD) % GROUP or crowded_B.any():
            pairs = pairs.where((pairs.ids_P < len(self._centroids_KD)) & ~crowded_B[pairs.rows_P])
        counts_B = torch.bincount(pairs.rows_P, minlength=len(rows_BD))
        ids_P = pairs.ids_P if self._order_K is None else self._order_K.index_select(0, pairs.ids_P)
        # the mean was taken off the centroids, and the ceiling is for whole ones
        ceiling_B = (bar_B * step_B).double()
        if self._precision != "float32":
            ceiling_B += (rows_BD @ self._mean_D).double() + float32_dot_error(rows_BD.shape[1])
        return Shortlist(offsets(counts_B), ids_P, ceiling_B.masked_fill(crowded_B, torch.inf))

    def _product(self, values_BD: Tensor, values_KD: Tensor) -> Tensor:
        """Scores [B, K]: int32 without any error, or in the precision of the values."""
        shape = (len(values_BD), len(values_KD))
        if self._scores.numel() < shape[0] * shape[1]:
            self._scores = self._scores.new_empty(shape[0] * shape[1])
        scores_BK = self._scores[: shape[0] * shape[1]].view(shape)
        multiply = torch._int_mm if values_BD.dtype == torch.int8 else torch.mm
        return multiply(values_BD, values_KD.T, out=scores_BK)


@dataclass(frozen=True)
class _Tile:
    """Rounded centroids, whole groups of them: values times step, and per group the most length and loss of one."""

    first_group: int
    values_KD: Tensor
    step_G: Tensor
    length_G: Tensor
    lost_G: Tensor

    @cached_property
    def most_error_2(self) -> Tensor:
        """The most length and loss of all groups."""
        return torch.stack([self.length_G.amax(), self.lost_G.amax()])

    @cached_property
    def _per_step_4G(self) -> Tensor:
        return torch.stack([torch.ones_like(self.step_G), -self.length_G, -self.lost_G, -self.step_G]) / self.step_G

    def needed(self, bar_B: Tensor, error_B2: Tensor, dtype: torch.dtype) -> Tensor:
        """What a column's score must reach for its upper bound to reach the bar: (bar - error) / step [B, G].

        One step less for whole numbers, which are cut off towards zero.
        """
        is_whole = dtype == torch.int32
        factors_B4 = torch.cat([bar_B[:, None], error_B2, torch.full_like(bar_B[:, None], float(is_whole))], dim=1)
        needed_BG = factors_B4 @ self._per_step_4G
        return needed_BG.clamp_(-(2.0**30), 2.0**30).int() if is_whole else needed_BG


@dataclass(frozen=True)
class _Pairs:
    """Candidates with their scores."""

    rows_P: Tensor
    ids_P: Tensor
    scores_P: Tensor

    def where(self, kept_P: Tensor) -> "_Pairs":
        return _Pairs(self.rows_P[kept_P], self.ids_P[kept_P], self.scores_P[kept_P])


def _look_into(scores_BGC: Tensor, chosen_P: Tensor, needed_BG: Tensor, tile: _Tile) -> _Pairs:
    """The columns of the chosen groups that reach what is needed."""
    # index_select is four times faster than indexing
    scores_PC = scores_BGC.flatten(0, 1).index_select(0, chosen_P)
    hits_P = positions(scores_PC >= needed_BG.flatten().index_select(0, chosen_P)[:, None])
    rows_P = chosen_P // needed_BG.shape[1]
    groups_P = chosen_P - rows_P * needed_BG.shape[1]
    hit_P = hits_P >> GROUP_BITS
    ids_P = ((tile.first_group + groups_P) << GROUP_BITS).index_select(0, hit_P) + (hits_P & (GROUP - 1))
    return _Pairs(rows_P.index_select(0, hit_P), ids_P, scores_PC.flatten().index_select(0, hits_P))


def _joined(found: list[_Pairs], tiles: list[_Tile], bar_B: Tensor, error_B2: Tensor) -> _Pairs:
    """The pairs of all tiles in row order, without those that the last bar leaves out."""
    kept = []
    for pairs, tile in zip(found, tiles, strict=True):
        groups_P = (pairs.ids_P >> GROUP_BITS) - tile.first_group
        error_P2 = torch.stack([tile.length_G[groups_P], tile.lost_G[groups_P]], dim=1) * error_B2[pairs.rows_P]
        kept.append(pairs.where(pairs.scores_P * tile.step_G[groups_P] + error_P2.sum(dim=1) >= bar_B[pairs.rows_P]))
    joined = _Pairs(
        torch.cat([pairs.rows_P for pairs in kept]),
        torch.cat([pairs.ids_P for pairs in kept]),
        torch.cat([pairs.scores_P for pairs in kept]),
    )
    return joined.where(joined.rows_P.sort(stable=True).indices)


def _highest(best_BL: Tensor, scores_BG: Tensor, num_labels: int) -> Tensor:
    if num_labels == 1:
        return torch.maximum(best_BL, scores_BG.amax(dim=1, keepdim=True))
    return torch.cat([best_BL, scores_BG], dim=1).topk(num_labels, sorted=False).values


def positions(mask: Tensor) -> Tensor:
    """Flat positions of True. numpy finds them three times faster than torch on the CPU."""
    return mask.flatten().nonzero()[:, 0] if mask.is_cuda else torch.from_numpy(np.flatnonzero(mask.numpy()))


def _steps(highest_N: Tensor, precision: Precision) -> Tensor:
    # elements below 2^-24 are no more than the grid's step
    return highest_N.clamp(min=2.0**-24) / INT8_STEPS if precision == "int8" else torch.ones_like(highest_N)


def _rounded(rows_ND: Tensor, step_N: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """Rows in the precision, and per row the length of what rounding took away."""
    if precision == "float32":
        return rows_ND, torch.zeros_like(step_N)
    if precision == "int8":
        scaled_ND = rows_ND / step_N[:, None]
        rounded_ND = scaled_ND.round()
        return rounded_ND.to(torch.int8), torch.linalg.vector_norm(scaled_ND.sub_(rounded_ND), dim=1) * step_N
    values_ND = rows_ND.to(getattr(torch, precision))
    return values_ND, torch.linalg.vector_norm(rows_ND - values_ND.float(), dim=1)


def _arithmetic_error(precision: Precision, dim: int) -> float:
    """What a product may be off, as a share of a centroid's length; int8 products are exact."""
    if precision == "int8":
        return 0.0
    if precision == "float32":
        return float32_dot_error(dim)
    return ACCUMULATION * float32_dot_error(dim) + 1.01 * UNIT_ROUNDOFF[precision]


def _check_products(precision: Precision, device: torch.device) -> None:
    mode = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]  # absent from torch's stubs
    if mode not in ("none", "ieee") or torch.backends.cuda.matmul.allow_tf32:
        raise ConfigError(
            f"float32 matrix products run in {mode if mode != 'none' else 'tf32'} here, which the exact assignment "
            "cannot certify; expected float32: call torch.set_float32_matmul_precision('highest')"
        )
    needed = {"int8": "cpu", "float16": "cuda"}.get(precision, device.type)
    if device.type != needed:
        raise ConfigError(f"search is {precision}, which runs on {needed} alone, and this is {device}: set it to auto")
    if precision == "int8" and not torch.cpu._is_vnni_supported():
        raise ConfigError("search is int8, and this CPU has no exact int8 products (VNNI): set it to float32 or auto")


@contextmanager
def _float32_sums() -> Iterator[None]:
    """Keeps cuBLAS from adding up parts of a product in 16 bits, as torch allows it by default."""
    matmul = torch.backends.cuda.matmul
    allowed = matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_fp16_reduced_precision_reduction = matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction = allowed
