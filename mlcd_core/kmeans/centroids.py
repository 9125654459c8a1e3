"""The k-means update: from the sums of each cluster's rows to the next centroids.

A centroid is its cluster's sum, normalised onto the grid. Two cases have no sum to normalise: rows that cancel out
leave the centroid where it was, and an empty cluster takes half of the biggest one (as in faiss `split_clusters`, but
by size and id instead of by chance). Shapes: K centroids, D dims.
"""

import heapq

import torch
from torch import Tensor

from mlcd_core.errors import DataError
from mlcd_core.kmeans.exact import are_unit_rows_on_grid, unit_rows_on_grid
from mlcd_core.kmeans.points import Rows, finite_norms, float_matrix

SPLIT_SHIFT = 1.0 / 1024

_CHUNK_ROWS = 4096  # float64 copies are made of so many centroids at a time


def centroids_on_grid(centroids_KD: Rows) -> Tensor:
    """Centroids from outside as float32 unit rows on the grid: kept when they are such, normalised otherwise."""
    rows_KD = float_matrix(centroids_KD)
    if len(rows_KD) == 0:
        raise DataError("there are no centroids; expected [K, dims] with K >= 1: pass .centroids_KD of a clustering")
    finite_norms(rows_KD, torch.arange(len(rows_KD)), what="centroid")
    return rows_KD.float() if are_unit_rows_on_grid(rows_KD) else unit_rows_on_grid(rows_KD.double())


def next_centroids(sums_KD: Tensor, counts_K: Tensor, previous_KD: Tensor) -> Tensor:
    """Float32 centroids on the grid from exact float64 sums and the rows of each cluster."""
    next_KD = torch.empty_like(previous_KD)
    for start in range(0, len(sums_KD), _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        next_KD[chunk] = unit_rows_on_grid(_directions(sums_KD[chunk], previous_KD[chunk]))
    halves: dict[int, Tensor] = {}
    for empty, donor in plan_splits(counts_K):
        if donor not in halves:
            halves[donor] = _directions(sums_KD[donor, None], previous_KD[donor, None])[0]
        halves[empty], halves[donor] = _split(halves[donor])
    if halves:
        next_KD[list(halves)] = unit_rows_on_grid(torch.stack(list(halves.values())))
    return next_KD


def plan_splits(counts_K: Tensor) -> list[tuple[int, int]]:
    """(empty cluster, donor) pairs: in id order, each empty cluster takes half of the then biggest, the lower id first.

    With four rows per centroid and one cluster empty, the biggest always has rows to give.
    """
    empty_ids = (counts_K == 0).nonzero()[:, 0].tolist()
    if not empty_ids:
        return []
    biggest = [(-count, cluster) for cluster, count in enumerate(counts_K.tolist()) if count > 0]
    heapq.heapify(biggest)
    splits = []
    for empty in empty_ids:
        count, donor = -biggest[0][0], biggest[0][1]
        assert count >= 2, f"cluster {donor} has {count} row, none to give to cluster {empty}"
        heapq.heapreplace(biggest, (-(count - count // 2), donor))
        heapq.heappush(biggest, (-(count // 2), empty))
        splits.append((empty, donor))
    return splits


def _directions(sums_KD: Tensor, previous_KD: Tensor) -> Tensor:
    cancelled_K = (sums_KD == 0).all(dim=1)
    return torch.where(cancelled_K[:, None], previous_KD.double(), sums_KD)


def _split(direction_D: Tensor) -> tuple[Tensor, Tensor]:
    # even elements grow in one half and shrink in the other, odd ones the other way round
    shift_D = torch.full_like(direction_D, SPLIT_SHIFT)
    shift_D[1::2] = -SPLIT_SHIFT
    return direction_D * (1 + shift_D), direction_D * (1 - shift_D)
