"""Where k-means starts: the K rows with distinct content that come first in a hash order.

Rows are ordered by splitmix64(seed, global row id), so the sample does not depend on which rank holds a row or on the
order of rows, and a data set that grows keeps most of it. Each rank reads its blocks once and keeps the first of its
own distinct rows; the ranks offer them to each other, and the lists grow until the first K distinct rows of all are
certain.

Shapes: N rows, K centroids, B rows of a tile, D dims, M rows that one rank offers.
"""

from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from torch import Tensor

from mlcd_core.errors import ConfigError, TooFewRowsError
from mlcd_core.hashing import splitmix64
from mlcd_core.kmeans.content import content_hashes, first_of_each
from mlcd_core.kmeans.exact import unit_rows_on_grid
from mlcd_core.kmeans.points import Points
from mlcd_core.kmeans.ranks import Ranks

_MAX_HASH = 2**63 - 1
_TILE_ROWS = 8192
_CHUNK_ROWS = 4096  # float64 copies of the start are made of so many rows at a time


def first_distinct_rows(points: Points, num_centroids: int, seed: int, ranks: Ranks) -> Tensor:
    """The starting centroids, equal on all ranks; raises TooFewRowsError when too few rows are distinct."""
    # a rank's share of the first K rows of all varies by its square root
    share = num_centroids // ranks.size
    num_offered = share + 8 * isqrt(share) + 64
    while True:
        offers = _gather_offers(_offer(points, seed, num_offered), ranks)
        rows_KD = _certain_rows(offers)[:num_centroids]
        if len(rows_KD) == num_centroids:
            return torch.cat([unit_rows_on_grid(rows_CD.double()) for rows_CD in torch.split(rows_KD, _CHUNK_ROWS)])
        if all(offer.is_complete for offer in offers):
            raise _too_few_distinct(num_centroids, len(rows_KD), int(ranks.sum(torch.tensor(points.num_rows))))
        num_offered *= 2


@dataclass(frozen=True)
class _Offer:
    """A rank's first M distinct rows in hash order; unused places at the end have the row id -1."""

    hashes_M: Tensor
    row_ids_M: Tensor
    rows_MD: Tensor

    @property
    def is_complete(self) -> bool:
        return bool(self.row_ids_M[-1] == -1)


def _offer(points: Points, seed: int, num_offered: int) -> _Offer:
    first = _FirstDistinct(num_offered, points.dim)
    for block in points.blocks:
        row_ids = block.row_ids()
        hashes = splitmix64(seed, row_ids)
        # most blocks hold no row that comes before those kept already, and their pages are left alone
        if not (hashes <= first.horizon).any():
            continue
        for rows, tile_BD in block.tiles(_TILE_ROWS):
            first.add(hashes[rows], row_ids[rows], tile_BD)
    return first.offer()


class _FirstDistinct:
    """The first M distinct rows, in hash order, of all rows added so far, in memory for 2 M rows and a tile."""

    def __init__(self, num_kept: int, dim: int) -> None:
        capacity = 2 * num_kept + _TILE_ROWS
        self._num_kept = num_kept
        self._hashes = torch.empty(capacity, dtype=torch.int64)
        self._row_ids = torch.empty(capacity, dtype=torch.int64)
        self._rows = torch.empty((capacity, dim), dtype=torch.float16)
        self._size = 0
        self.horizon = _MAX_HASH  # a row with a higher hash cannot be among the first M

    def add(self, hashes_B: Tensor, row_ids_B: Tensor, rows_BD: Tensor) -> None:
        near = (hashes_B <= self.horizon).nonzero()[:, 0]
        end = self._size + len(near)
        self._hashes[self._size : end] = hashes_B[near]
        self._row_ids[self._size : end] = row_ids_B[near]
        self._rows[self._size : end] = rows_BD[near]
        self._size = end
        if end > 2 * self._num_kept:
            self._compact()

    def offer(self) -> _Offer:
        self._compact()
        self._hashes[self._size : self._num_kept] = _MAX_HASH
        self._row_ids[self._size : self._num_kept] = -1
        self._rows[self._size : self._num_kept] = 0
        kept = slice(self._num_kept)
        return _Offer(self._hashes[kept].clone(), self._row_ids[kept].clone(), self._rows[kept].clone())

    def _compact(self) -> None:
        hashes, row_ids, rows = self._hashes[: self._size], self._row_ids[: self._size], self._rows[: self._size]
        order = _in_order(hashes, row_ids)
        kept = order[first_of_each(rows, content_hashes(rows), order)][: self._num_kept]
        self._size = len(kept)
        self._hashes[: self._size], self._row_ids[: self._size] = hashes[kept], row_ids[kept]
        self._rows[: self._size] = rows[kept]
        if self._size == self._num_kept:
            self.horizon = int(self._hashes[self._size - 1])


def _gather_offers(offer: _Offer, ranks: Ranks) -> list[_Offer]:
    parts = zip(ranks.gather(offer.hashes_M), ranks.gather(offer.row_ids_M), ranks.gather(offer.rows_MD), strict=True)
    offers = [_Offer(*part) for part in parts]
    row_ids = torch.cat([offer.row_ids_M[offer.row_ids_M >= 0] for offer in offers])
    sorted_ids = row_ids.sort().values
    repeated = sorted_ids[1:][sorted_ids[1:] == sorted_ids[:-1]]
    if len(repeated):
        raise ConfigError(
            f"row id {int(repeated[0])} stands for more than one row; expected global row ids: pass "
            "first_row or row_ids to ArrayPoints on every rank"
        )
    return offers


def _certain_rows(offers: list[_Offer]) -> Tensor:
    # beyond the last row that some rank offered, that rank may hold rows nobody has seen yet
    horizon = min((int(offer.hashes_M[-1]) for offer in offers if not offer.is_complete), default=_MAX_HASH)
    hashes = torch.cat([offer.hashes_M for offer in offers])
    row_ids = torch.cat([offer.row_ids_M for offer in offers])
    rows_PD = torch.cat([offer.rows_MD for offer in offers])
    order = _in_order(hashes, row_ids)
    certain = order[(hashes[order] <= horizon) & (row_ids[order] >= 0)]
    return rows_PD[certain[first_of_each(rows_PD, content_hashes(rows_PD), certain)]]


def _in_order(hashes: Tensor, row_ids: Tensor) -> Tensor:
    return torch.from_numpy(np.lexsort((row_ids.numpy(), hashes.numpy())))


def _too_few_distinct(num_centroids: int, num_distinct: int, num_rows: int) -> TooFewRowsError:
    return TooFewRowsError(
        f"{num_centroids:,} centroids from {num_rows:,} usable rows, of which only {num_distinct:,} are distinct; "
        f"expected at least one distinct row per centroid: set cluster.num_centroids <= {num_distinct:,} or add shards"
    )
