"""Shortlists of centroids for rows, and the exact best of them.

Whatever a search computes with, it names candidate ids for each row and a ceiling that no other centroid's exact score
exceeds. The exact scores of the candidates then settle every row whose L-th best is above its ceiling, so the result
depends on no search. Candidates are stored without gaps: row b's are ``ids_P[offsets_B1[b] : offsets_B1[b + 1]]``.

Shapes: B rows of a tile, K centroids, D dims, P pairs of a row and one of its candidates, L labels per row.
"""

import warnings
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

FLOAT32_ROUNDOFF = 2.0**-24
# rows are at most 1 + 2^-10 long, centroids 1 + sqrt(D) 2^-25
LENGTH_PRODUCT = 1.01
# pairs of float64 elements that are gathered at once where there is no sampled product: 32 MiB
GATHER_ELEMENTS = 2**22


@dataclass(frozen=True)
class Shortlist:
    """``ids_P`` int64, each once in a row; no other centroid's exact score is above ``ceiling_B`` (float64)."""

    offsets_B1: Tensor
    ids_P: Tensor
    ceiling_B: Tensor

    @classmethod
    def of_columns(cls, ids_BM: Tensor, ceiling_B: Tensor) -> Self:
        """The same number of candidates for every row."""
        num_rows, num_candidates = ids_BM.shape
        offsets_B1 = torch.arange(num_rows + 1, device=ids_BM.device) * num_candidates
        return cls(offsets_B1, ids_BM.flatten(), ceiling_B)

    @property
    def counts_B(self) -> Tensor:
        """Candidates of each row."""
        return self.offsets_B1.diff()

    @property
    def rows_P(self) -> Tensor:
        """The row of each pair."""
        return torch.repeat_interleave(self.counts_B, output_size=len(self.ids_P))

    def where(self, kept_P: Tensor) -> "Shortlist":
        """Without the pairs that are proven not to be among the best L."""
        num_kept_B = torch.bincount(self.rows_P[kept_P], minlength=len(self.ceiling_B))
        return Shortlist(offsets(num_kept_B), self.ids_P[kept_P], self.ceiling_B)


def offsets(counts_B: Tensor) -> Tensor:
    """Where each row begins, and the end of the last."""
    return torch.nn.functional.pad(counts_B.cumsum(0), (1, 0))


def best_of(rows_BD: Tensor, centroids_KD: Tensor, shortlist: Shortlist, num_labels: int) -> tuple[Tensor, Tensor]:
    """(ids_BL int64, cosines_BL float64): the best L candidates by exact score, equal scores by the lower id.

    A row with fewer than L candidates ends with scores of -inf.
    """
    if len(shortlist.ids_P) > 2 * num_labels * len(rows_BD):
        shortlist = _narrowed(rows_BD, centroids_KD, shortlist, num_labels)
    # float64 copies of the centroids that are asked for, and of no others
    asked_K = torch.zeros(len(centroids_KD), dtype=torch.bool, device=centroids_KD.device)
    asked_K.index_fill_(0, shortlist.ids_P, True)
    position_K = asked_K.cumsum(0) - 1
    asked = Shortlist(shortlist.offsets_B1, position_K.index_select(0, shortlist.ids_P), shortlist.ceiling_B)
    cosines_P = pair_dots(rows_BD.double(), centroids_KD[asked_K].double(), asked)
    cosines_BM = _columns(cosines_P, shortlist, -torch.inf, at_least=num_labels)
    ids_BM = _columns(shortlist.ids_P, shortlist, len(centroids_KD), at_least=num_labels)
    # equal scores are brought in id order, and a stable sort leaves them so
    ids_BM, order_BM = ids_BM.sort(dim=1)
    cosines_BM = cosines_BM.gather(1, order_BM)
    order_BL = cosines_BM.sort(dim=1, descending=True, stable=True).indices[:, :num_labels]
    return ids_BM.gather(1, order_BL), cosines_BM.gather(1, order_BL)


def best_ids(rows_BD: Tensor, centroids_KD: Tensor, shortlist: Shortlist) -> tuple[Tensor, Tensor]:
    """(ids_B int64, settled_B): the best candidate where float32 scores are enough to tell, without exact scores."""
    error = float32_dot_error(rows_BD.shape[1])
    scores_P = pair_dots(rows_BD.float(), centroids_KD, shortlist)
    best_B = _columns(scores_P, shortlist, -torch.inf, at_least=1).amax(dim=1)
    rows_P = shortlist.rows_P
    close_P = scores_P >= best_B.double().index_select(0, rows_P) - 2 * error
    num_close_B = torch.bincount(rows_P[close_P], minlength=len(rows_BD))
    ids_B = torch.zeros_like(num_close_B).index_copy_(0, rows_P[close_P], shortlist.ids_P[close_P])
    return ids_B, (num_close_B == 1) & (best_B.double() - error > shortlist.ceiling_B)


def _narrowed(rows_BD: Tensor, centroids_KD: Tensor, shortlist: Shortlist, num_labels: int) -> Shortlist:
    """Leave out candidates that L others beat even if every float32 score is wrong by as much as it can be."""
    scores_P = pair_dots(rows_BD.float(), centroids_KD, shortlist)
    scores_BM = _columns(scores_P, shortlist, -torch.inf, at_least=num_labels)
    worst_B = scores_BM.amax(1) if num_labels == 1 else scores_BM.topk(num_labels, sorted=False).values.amin(1)
    bar_B = worst_B.double() - 2 * float32_dot_error(rows_BD.shape[1])
    return shortlist.where(scores_P >= torch.repeat_interleave(bar_B, shortlist.counts_B, output_size=len(scores_P)))


def pair_dots(rows_BD: Tensor, table_KD: Tensor, shortlist: Shortlist) -> Tensor:
    """The dot of row and candidate for each pair [P], in the inputs' dtype and any order of summation."""
    if rows_BD.is_cuda:
        rows_P, chunk = shortlist.rows_P, max(1, GATHER_ELEMENTS // rows_BD.shape[1])
        pairs = zip(torch.split(rows_P, chunk), torch.split(shortlist.ids_P, chunk), strict=True)
        return torch.cat([torch.linalg.vecdot(rows_BD[rows_C], table_KD[ids_C]) for rows_C, ids_C in pairs])
    # reads both operands in place at 40 GB/s on 2 cores; gathering copies of them took four times as long
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
        pattern = torch.sparse_csr_tensor(
            shortlist.offsets_B1,
            shortlist.ids_P,
            torch.zeros(len(shortlist.ids_P), dtype=rows_BD.dtype),
            (len(rows_BD), len(table_KD)),
            check_invariants=False,
        )
    dots: Tensor = torch.sparse.sampled_addmm(pattern, rows_BD, table_KD.T, beta=0.0).values()
    return dots


def float32_dot_error(dim: int) -> float:
    """Bound on a float32 dot's error in any order of summation, with or without FMA: gamma_D |x| |c|.

    gamma_D = D u / (1 - D u): Higham, Accuracy and Stability of Numerical Algorithms, section 3.1. Cauchy-Schwarz
    bounds sum |x_i c_i| by |x| |c|; products are multiples of 2^-48, so nothing underflows.
    """
    assert dim < 2**20, f"no useful bound at {dim} dims"
    return dim * FLOAT32_ROUNDOFF / (1 - dim * FLOAT32_ROUNDOFF) * LENGTH_PRODUCT


def _columns(values_P: Tensor, shortlist: Shortlist, fill: float, *, at_least: int) -> Tensor:
    """The values of each row side by side [B, M], M the longest list, ``fill`` behind the shorter ones."""
    counts_B, rows_P = shortlist.counts_B, shortlist.rows_P
    width = max(at_least, int(counts_B.max()) if len(counts_B) else 0)
    values_BM = values_P.new_full((len(counts_B), width), fill)
    # where each pair stands in the flattened result: a row's pairs are one run, and its rest is skipped
    skipped_B = torch.arange(len(counts_B), device=counts_B.device) * width - shortlist.offsets_B1[:-1]
    places_P = torch.arange(len(values_P), device=values_P.device) + skipped_B.index_select(0, rows_P)
    return values_BM.flatten().index_copy_(0, places_P, values_P).view_as(values_BM)
