"""The exact nearest centroids of each row, at the price of an approximate search.

A coarse search proposes candidates, float64 reranks them (exactly, see ``exact``), and a row is done when its last
chosen score beats everything that was not proposed. The few rows for which it does not get a float32 search, then a
float64 pass over all centroids. So the choice of candidates decides the time and never the result: the ids are those of
the L highest exact scores, equal scores by the lower id. N x K is never stored.

Shapes: N rows, B rows of a tile, K centroids, D dims, L labels per row, M candidates per row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from mlcd_core.errors import ConfigError, DataError
from mlcd_core.kmeans.centroids import centroids_on_grid
from mlcd_core.kmeans.points import ArrayPoints, Points, Rows
from mlcd_core.kmeans.shortlist import Shortlist, best_ids, best_of
from mlcd_core.kmeans.tile_search import TILE_CENTROIDS, TileSearch, best_precision
from mlcd_core.runtimes import SearchName

# enough rows to share the work around the products, few enough that copies of them in float64 stay in a cache
TILE_ROWS = 16_384
# of the pass over all centroids: their float64 scores among a tile of these, and the sort of them, take 100 MB
EXHAUSTIVE_ROWS = 256


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


class Search(Protocol):
    """Proposes candidates among one set of centroids; decides the time, never the result."""

    def propose(self, points_BD: Tensor, num_labels: int) -> Shortlist:
        """Candidates for the top L of float16 unit rows."""


class Assigner:
    """Finds the exact top ``num_labels`` of rows among one set of centroids, which are prepared once.

    ``centroids_KD`` float32 unit rows on the grid; points must be on their device. ``search`` as in
    ``runtimes.SearchName``. Raises ConfigError when there are fewer centroids than labels, or when this machine or
    device cannot run the search.
    """

    def __init__(
        self,
        centroids_KD: Tensor,
        *,
        num_labels: int = 1,
        search: SearchName = "auto",
        tile_centroids: int = TILE_CENTROIDS,
    ) -> None:
        _check_num_labels(num_labels, len(centroids_KD))
        self.centroids_KD = centroids_KD
        self.num_labels = num_labels
        self._search_name = best_precision(centroids_KD.device) if search == "auto" else search
        self._tile_centroids = tile_centroids
        self._first = self._open(self._search_name)

    def nearest(self, points_BD: Tensor) -> Neighbors:
        """Exact top L of float16 unit rows."""
        return self._nearest(points_BD, self._searches())

    def ids(self, points_BD: Tensor) -> tuple[Tensor, int]:
        """(int32 id of each row's nearest centroid, rows that took a float64 pass); for one label.

        Those of ``nearest``, in less time: exact scores are computed only where float32 cannot tell.
        """
        assert self.num_labels == 1, f"ids are for one label, not {self.num_labels}"
        ids_B, settled_B = best_ids(points_BD, self.centroids_KD, self._first.propose(points_BD, 1))
        open_P = (~settled_B).nonzero()[:, 0]
        if len(open_P) == 0:
            return ids_B.int(), 0
        searches = self._searches()
        if self._search_name != "float32":
            next(searches)
        found = self._nearest(points_BD[open_P], searches)
        ids_B[open_P] = found.ids_NL[:, 0].long()
        return ids_B.int(), found.num_exhaustive

    def _nearest(self, points_BD: Tensor, searches: Iterator[Search]) -> Neighbors:
        ids_BL = torch.empty((len(points_BD), self.num_labels), dtype=torch.int32, device=points_BD.device)
        cosines_BL = torch.empty_like(ids_BL, dtype=torch.float64)
        pending_P = torch.arange(len(points_BD), device=points_BD.device)
        for search in searches:
            rows_PD = points_BD[pending_P] if len(pending_P) < len(points_BD) else points_BD
            shortlist = search.propose(rows_PD, self.num_labels)
            best_ids, best_cosines = best_of(rows_PD, self.centroids_KD, shortlist, self.num_labels)
            ids_BL[pending_P], cosines_BL[pending_P] = best_ids.int(), best_cosines
            pending_P = pending_P[best_cosines[:, -1] <= shortlist.ceiling_B]
            if len(pending_P) == 0:
                return Neighbors(ids_BL, cosines_BL)
        for part_P in torch.split(pending_P, EXHAUSTIVE_ROWS):
            best = _exhaustive(points_BD[part_P], self.centroids_KD, self.num_labels, self._tile_centroids)
            ids_BL[part_P], cosines_BL[part_P] = best.ids_NL, best.cosines_NL
        return Neighbors(ids_BL, cosines_BL, num_exhaustive=len(pending_P))

    def _searches(self) -> Iterator[Search]:
        yield self._first
        if self._search_name != "float32":
            yield self._second

    @cached_property
    def _second(self) -> Search:
        """For rows that the first cannot settle: twins of split clusters, mostly."""
        return self._open("float32")

    def _open(self, name: SearchName) -> Search:
        if name == "triton":
            from mlcd_core.kmeans.triton_search import TritonSearch

            return TritonSearch(self.centroids_KD, self.centroids_KD.device)
        if name == "faiss":
            from mlcd_core.kmeans.faiss_search import FaissSearch

            return FaissSearch(self.centroids_KD, self.centroids_KD.device)
        assert name != "auto"
        return TileSearch(self.centroids_KD, name, self._tile_centroids)


def nearest_centroids(
    points_ND: Points | Rows,
    centroids_KD: Rows,
    *,
    num_labels: int,
    search: SearchName = "auto",
    tile_rows: int = TILE_ROWS,
    tile_centroids: int = TILE_CENTROIDS,
) -> Neighbors:
    """Exact top ``num_labels`` centroids of every row; ``search`` and tiles decide the time, never the result.

    Rows that are not ArrayPoints yet become them; centroids that are not on the grid yet are normalised onto it.
    Raises ConfigError when there are fewer centroids than labels.
    """
    points = points_ND if isinstance(points_ND, Points) else ArrayPoints(points_ND)
    grid_KD = centroids_on_grid(centroids_KD)
    if points.dim != grid_KD.shape[1]:
        raise DataError(f"points have {points.dim} dims, centroids {grid_KD.shape[1]}: they come from other embeddings")
    assigner = Assigner(grid_KD, num_labels=num_labels, search=search, tile_centroids=tile_centroids)
    tiles = [assigner.nearest(tile_BD) for _, tile_BD in points.tiles(tile_rows)]
    return _joined(tiles, num_labels)


def _check_num_labels(num_labels: int, num_centroids: int) -> None:
    """Raise ConfigError unless 1 <= L <= K."""
    if not 1 <= num_labels <= num_centroids:
        raise ConfigError(
            f"{num_labels} labels per row from {num_centroids} centroids; expected 1 to {num_centroids}: set "
            f"label.num_labels <= {num_centroids} or raise cluster.num_centroids"
        )


def _exhaustive(points_BD: Tensor, centroids_KD: Tensor, num_labels: int, tile_centroids: int) -> Neighbors:
    rows_BD = points_BD.double()
    best = Neighbors(torch.empty((len(rows_BD), 0), dtype=torch.int32, device=rows_BD.device), rows_BD[:, :0])
    for start in range(0, len(centroids_KD), tile_centroids):
        cosines_BK = rows_BD @ centroids_KD[start : start + tile_centroids].double().T
        ids_BK = torch.arange(start, start + cosines_BK.shape[1], device=rows_BD.device).expand_as(cosines_BK)
        cosines_BM = torch.cat([best.cosines_NL, cosines_BK], dim=1)
        best = _best(cosines_BM, torch.cat([best.ids_NL, ids_BK], dim=1), num_labels)
    return best


def _best(cosines_BM: Tensor, ids_BM: Tensor, num_labels: int) -> Neighbors:
    # equal scores stand in id order in every input; max takes the first, and a stable sort leaves them so
    if num_labels == 1:
        order_BL = cosines_BM.max(dim=1, keepdim=True).indices
    else:
        order_BL = cosines_BM.sort(dim=1, descending=True, stable=True).indices[:, :num_labels]
    return Neighbors(ids_BM.gather(1, order_BL).int(), cosines_BM.gather(1, order_BL))


def _joined(tiles: list[Neighbors], num_labels: int) -> Neighbors:
    empty = torch.empty((0, num_labels), dtype=torch.float64)
    return Neighbors(
        torch.cat([tile.ids_NL for tile in tiles] or [empty.int()]),
        torch.cat([tile.cosines_NL for tile in tiles] or [empty]),
        sum(tile.num_exhaustive for tile in tiles),
    )
