"""The exact nearest centroids of each row, at the price of an approximate search.

A float32 search proposes candidates, float64 reranks them (exactly, see ``exact``), and a row is done when its last
chosen score beats everything that was not proposed. The few rows for which it does not get more candidates, then a
float64 pass over all centroids. So the choice of candidates decides the time and never the result: the ids are those of
the L highest exact scores, equal scores by the lower id. N x K is never stored.

Shapes: N rows, B rows of a tile, K centroids, D dims, L labels per row, M candidates per row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mlcd_core.errors import ConfigError, DataError
from mlcd_core.kmeans.centroids import centroids_on_grid
from mlcd_core.kmeans.points import ArrayPoints, Rows
from mlcd_core.kmeans.propose import TILE_CENTROIDS, propose

TILE_ROWS = 4096
# what a second search adds for rows whose runner-up is too close: twins of split clusters, mostly
SPARE_CANDIDATES = 16
# float64 elements gathered at once; 1 MiB stays in the cache, 32 MiB took five times as long per element
RERANK_ELEMENTS = 2**17


@dataclass(frozen=True)
class Neighbors:
    """The best L centroids of each row, best first, equal scores by the lower id.

    ``ids_NL`` int32; ``cosines_NL`` the float64 dots of row and centroid, exact; ``num_exhaustive`` counts the rows
    that took a float64 pass over all centroids.
    """

    ids_NL: Tensor
    cosines_NL: Tensor
    num_exhaustive: int = 0

    @property
    def scores_NL(self) -> Tensor:
        """The cosines rounded once to float32."""
        return self.cosines_NL.float()


class Assigner:
    """Finds the exact top ``num_labels`` of rows among one set of centroids; what can be prepared, is prepared once.

    ``centroids_KD`` float32 unit rows on the grid.
    """

    def __init__(
        self,
        centroids_KD: Tensor,
        *,
        num_labels: int = 1,
        tile_centroids: int = TILE_CENTROIDS,
    ) -> None:
        self.centroids_KD = centroids_KD
        self.num_labels = num_labels
        self._tile_centroids = tile_centroids

    def nearest(self, points_BD: Tensor) -> Neighbors:
        """Exact top L of one tile of float16 unit rows."""
        return exact_nearest(points_BD, self.centroids_KD, self.num_labels, self._tile_centroids)


def nearest_centroids(
    points_ND: ArrayPoints | Rows,
    centroids_KD: Rows,
    *,
    num_labels: int,
    tile_rows: int = TILE_ROWS,
    tile_centroids: int = TILE_CENTROIDS,
) -> Neighbors:
    """Exact top ``num_labels`` centroids of every row.

    Rows that are not ArrayPoints yet become them; centroids that are not on the grid yet are normalised onto it.
    Raises ConfigError when there are fewer centroids than labels.
    """
    points = points_ND if isinstance(points_ND, ArrayPoints) else ArrayPoints(points_ND)
    grid_KD = centroids_on_grid(centroids_KD)
    check_num_labels(num_labels, len(grid_KD))
    if points.dim != grid_KD.shape[1]:
        raise DataError(f"points have {points.dim} dims, centroids {grid_KD.shape[1]}: they come from other embeddings")
    tiles = [exact_nearest(tile_BD, grid_KD, num_labels, tile_centroids) for _, tile_BD in points.tiles(tile_rows)]
    return _joined(tiles, num_labels)


def check_num_labels(num_labels: int, num_centroids: int) -> None:
    """Raise ConfigError unless 1 <= L <= K."""
    if not 1 <= num_labels <= num_centroids:
        raise ConfigError(
            f"{num_labels} labels per row from {num_centroids} centroids; expected 1 to {num_centroids}: set "
            f"label.num_labels <= {num_centroids} or raise cluster.num_centroids"
        )


def exact_nearest(points_BD: Tensor, centroids_KD: Tensor, num_labels: int, tile_centroids: int) -> Neighbors:
    """Top L of one tile of float16 unit rows against float32 centroids on the grid."""
    ids_BL = torch.empty((len(points_BD), num_labels), dtype=torch.int32)
    cosines_BL = torch.empty((len(points_BD), num_labels), dtype=torch.float64)
    pending = torch.arange(len(points_BD))
    for wanted in (num_labels + 1, num_labels + SPARE_CANDIDATES):
        rows_BD = points_BD[pending]
        found = propose(rows_BD, centroids_KD, min(wanted, len(centroids_KD)), tile_centroids)
        best = _rerank(rows_BD, centroids_KD, found.ids_BM, num_labels)
        ids_BL[pending], cosines_BL[pending] = best.ids_NL, best.cosines_NL
        pending = pending[best.cosines_NL[:, -1] <= found.ceiling_B]
        if len(pending) == 0:
            return Neighbors(ids_BL, cosines_BL)
    best = _exhaustive(points_BD[pending], centroids_KD, num_labels, tile_centroids)
    ids_BL[pending], cosines_BL[pending] = best.ids_NL, best.cosines_NL
    return Neighbors(ids_BL, cosines_BL, num_exhaustive=len(pending))


def _rerank(points_BD: Tensor, centroids_KD: Tensor, ids_BM: Tensor, num_labels: int) -> Neighbors:
    ids_BM = ids_BM.sort(dim=1).values
    chunk_rows = max(1, RERANK_ELEMENTS // (ids_BM.shape[1] * points_BD.shape[1]))
    cosines_BM = torch.cat(
        [
            torch.einsum("bd,bmd->bm", rows_BD.double(), centroids_KD[chunk_BM].double())
            for rows_BD, chunk_BM in zip(
                torch.split(points_BD, chunk_rows), torch.split(ids_BM, chunk_rows), strict=True
            )
        ]
    )
    return _best(cosines_BM, ids_BM, num_labels)


def _exhaustive(points_BD: Tensor, centroids_KD: Tensor, num_labels: int, tile_centroids: int) -> Neighbors:
    rows_BD = points_BD.double()
    best = _joined([], 0, num_rows=len(rows_BD))
    for start in range(0, len(centroids_KD), tile_centroids):
        cosines_BK = rows_BD @ centroids_KD[start : start + tile_centroids].double().T
        ids_BK = torch.arange(start, start + cosines_BK.shape[1]).expand_as(cosines_BK)
        cosines_BM = torch.cat([best.cosines_NL, cosines_BK], dim=1)
        best = _best(cosines_BM, torch.cat([best.ids_NL, ids_BK], dim=1), num_labels)
    return best


def _best(cosines_BM: Tensor, ids_BM: Tensor, num_labels: int) -> Neighbors:
    # equal scores stand in id order in every input, and a stable sort leaves them so
    order_BL = cosines_BM.sort(dim=1, descending=True, stable=True).indices[:, :num_labels]
    return Neighbors(ids_BM.gather(1, order_BL).int(), cosines_BM.gather(1, order_BL))


def _joined(tiles: list[Neighbors], num_labels: int, num_rows: int = 0) -> Neighbors:
    empty = torch.empty((num_rows, num_labels), dtype=torch.float64)
    return Neighbors(
        torch.cat([empty.int(), *(tile.ids_NL for tile in tiles)]),
        torch.cat([empty, *(tile.cosines_NL for tile in tiles)]),
        sum(tile.num_exhaustive for tile in tiles),
    )
