"""Where k-means starts: the K rows with distinct content that come first in a hash order.

Rows are ordered by splitmix64(seed, global row id), so the sample does not depend on which rank holds a row or on the
order of rows, and a data set that grows keeps most of it. Each rank offers the first of its own distinct rows; the
lists grow until the first K distinct rows of all are certain.

Shapes: N rows, K centroids, D dims, M rows that one rank offers.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlcd_core.errors import ConfigError, TooFewRowsError
from mlcd_core.hashing import splitmix64
from mlcd_core.kmeans.exact import unit_rows_on_grid
from mlcd_core.kmeans.points import ArrayPoints
from mlcd_core.kmeans.ranks import Ranks
from mlcd_core.specs import ClusterSpec

_MAX_HASH = 2**63 - 1


def choose_num_centroids(spec: ClusterSpec, num_rows: int) -> int:
    """K as the spec says or as the rows allow; raises TooFewRowsError when there are not four rows per centroid."""
    num_centroids = spec.num_centroids or max(1, num_rows // spec.rows_per_centroid)
    if num_centroids > num_rows // 4:
        fix = f"set cluster.num_centroids <= {num_rows // 4:,} or add shards" if num_rows >= 4 else "add shards"
        raise TooFewRowsError(
            f"{num_centroids:,} centroids from {num_rows:,} usable rows; K may be at most rows/4: {fix}"
        )
    return num_centroids


def first_distinct_rows(points: ArrayPoints, num_centroids: int, seed: int, ranks: Ranks) -> Tensor:
    """The starting centroids, equal on all ranks; raises TooFewRowsError when too few rows are distinct."""
    order = _hash_order(points, seed)
    num_offered = num_centroids // ranks.size + 64
    while True:
        offers = _gather_offers(_offer(points, order, num_offered), ranks)
        rows_KD = _certain_rows(offers)[:num_centroids]
        if len(rows_KD) == num_centroids:
            return unit_rows_on_grid(rows_KD.double())
        if all(offer.is_complete for offer in offers):
            raise _too_few_distinct(num_centroids, len(rows_KD), int(ranks.sum(torch.tensor(points.num_rows))))
        num_offered *= 2


@dataclass(frozen=True)
class _HashOrder:
    """A rank's rows by (hash, row id): their positions and hashes."""

    positions_N: Tensor
    hashes_N: Tensor


@dataclass(frozen=True)
class _Offer:
    """A rank's first M distinct rows in hash order; unused places at the end have the row id -1."""

    hashes_M: Tensor
    row_ids_M: Tensor
    rows_MD: Tensor

    @property
    def is_complete(self) -> bool:
        return bool(self.row_ids_M[-1] == -1)


def _hash_order(points: ArrayPoints, seed: int) -> _HashOrder:
    hashes_N = splitmix64(seed, points.row_ids_N)
    positions_N = torch.from_numpy(np.lexsort((points.row_ids_N.numpy(), hashes_N.numpy())))
    return _HashOrder(positions_N, hashes_N[positions_N])


def _offer(points: ArrayPoints, order: _HashOrder, num_offered: int) -> _Offer:
    num_read = num_offered
    while True:
        positions = order.positions_N[:num_read]
        first = _first_of_each(points.points_ND[positions])[:num_offered]
        if len(first) == num_offered or num_read >= points.num_rows:
            break
        num_read *= 2
    offer = _Offer(
        torch.full((num_offered,), _MAX_HASH),
        torch.full((num_offered,), -1),
        torch.zeros((num_offered, points.dim), dtype=torch.float16),
    )
    chosen = positions[first]
    offer.hashes_M[: len(first)] = order.hashes_N[first]
    offer.row_ids_M[: len(first)] = points.row_ids_N[chosen]
    offer.rows_MD[: len(first)] = points.points_ND[chosen]
    return offer


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
    order = torch.from_numpy(np.lexsort((row_ids.numpy(), hashes.numpy())))
    certain = order[(hashes[order] <= horizon) & (row_ids[order] >= 0)]
    rows_PD = torch.cat([offer.rows_MD for offer in offers])[certain]
    return rows_PD[_first_of_each(rows_PD)]


def _first_of_each(rows_ND: Tensor) -> Tensor:
    """Positions of the first row of each content, ascending."""
    # adding 0 makes -0 and 0, which are equal numbers, equal bytes
    content_N = (rows_ND + 0.0).numpy().view(np.dtype((np.void, 2 * rows_ND.shape[1]))).reshape(-1)
    return torch.from_numpy(np.sort(np.unique(content_N, return_index=True)[1]))


def _too_few_distinct(num_centroids: int, num_distinct: int, num_rows: int) -> TooFewRowsError:
    return TooFewRowsError(
        f"{num_centroids:,} centroids from {num_rows:,} usable rows, of which only {num_distinct:,} are distinct; "
        f"expected at least one distinct row per centroid: set cluster.num_centroids <= {num_distinct:,} or add shards"
    )
