"""Where the recipe ``hierarchical`` starts: the rows in slices, each clustered on its own, and their centroids merged.

A slice is every ``slices``-th block of rows, on all ranks together, so it is the same for any number of ranks. It gets
two centroids for each one that its share of the rows deserves, so an iteration over all slices costs 2 / ``slices`` of
one over all rows. The slices' centroids, each standing for as many rows as its cluster has, are then clustered to K:
weighted sums are sums of float16 rows that are taken several times, as exact as any. The authors of MLCD keep what
comes out; here iterations over all rows follow.

Shapes: K centroids, M centroids of all slices together, D dims, S slices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from mlcd_core.errors import ConfigError, TooFewRowsError
from mlcd_core.events import Report, Value
from mlcd_core.kmeans.points import ArrayPoints, Points
from mlcd_core.kmeans.ranks import Ranks
from mlcd_core.kmeans.saving import Parts
from mlcd_core.kmeans.state import CentroidState
from mlcd_core.specs import ClusterSpec
from mlcd_core.tables import BLOCK_ROWS


class Fitted(Protocol):
    """What a clustering ends with."""

    @property
    def state(self) -> CentroidState:
        """The end state."""


class FitPart(Protocol):
    """``lloyd.fit`` with the run's group and device, for one part of the rows at a time."""

    def __call__(
        self,
        points: Points,
        spec: ClusterSpec,
        *,
        resume: CentroidState | None,
        on_iteration: Callable[[CentroidState], None],
    ) -> Fitted:
        """Called on all ranks."""


@dataclass(frozen=True)
class _Slice:
    number: int
    num_rows: int
    num_centroids: int


def merged_slices(
    points: Points,
    spec: ClusterSpec,
    num_centroids: int,
    ranks: Ranks,
    fit_part: FitPart,
    *,
    saved: Sequence[CentroidState] = (),
    on_parts: Callable[[Parts], None] | None,
    report: Report,
) -> Tensor:
    """The K starting centroids, on every rank: float32 unit rows on the grid.

    ``on_parts`` gets, after each iteration, the end states of the slices so far and the state of the one under way, the
    merge being the last; ``saved`` is such a list, to go on from. Raises TooFewRowsError when a slice has too few
    distinct rows, or all slices together too few centroids.
    """
    slices = _plan_slices(points, spec, num_centroids, ranks)
    if len(saved) > len(slices) + 1:
        raise ConfigError(
            f"{len(saved)} saved parts of a hierarchical clustering; expected at most {len(slices) + 1}, one for each "
            "slice and one for the merge: they are of another spec or other data, start without them"
        )
    level = spec.model_copy(update={"recipe": "exact"})
    done: Parts = ()

    def fit_next(part: Points, num_rows: int, num_centroids: int, what: str) -> CentroidState:
        def on_iteration(state: CentroidState) -> None:
            if on_parts is not None:
                on_parts((*done, state))

        try:
            state = fit_part(
                part,
                level.model_copy(update={"num_centroids": num_centroids}),
                resume=saved[len(done)] if len(done) < len(saved) else None,
                on_iteration=on_iteration,
            ).state
        except TooFewRowsError as error:
            raise TooFewRowsError(
                f"{what} of a hierarchical clustering: {error}; or set cluster.slices lower, or cluster.recipe to exact"
            ) from error
        event: dict[str, Value] = {
            "part": what,
            "rows": num_rows,
            "centroids": num_centroids,
            "iterations": state.iteration,
            "objective": state.objective[-1],
        }
        report("cluster.part", event)
        return state

    for each in slices:
        blocks = [block for block in points.blocks if block.number % spec.slices == each.number]
        name = f"slice {each.number + 1} of {spec.slices}"
        done = (*done, fit_next(Points(blocks, points.dim), each.num_rows, each.num_centroids, name))
    num_merged = sum(int((state.counts_K > 0).sum()) for state in done)
    return fit_next(_weighted_points(done, ranks), num_merged, num_centroids, "the merge").centroids_KD


def _plan_slices(points: Points, spec: ClusterSpec, num_centroids: int, ranks: Ranks) -> list[_Slice]:
    """Slices that have rows for at least one centroid; others are left to the iterations over all rows."""
    rows_S = torch.zeros(spec.slices, dtype=torch.int64)
    for block in points.blocks:
        rows_S[block.number % spec.slices] += block.num_rows
    rows = ranks.sum(rows_S).tolist()
    # twice its share, with four rows for each
    wanted = [min(-(-2 * num_centroids * num_rows // sum(rows)), num_rows // 4) for num_rows in rows]
    if sum(wanted) < num_centroids:
        raise TooFewRowsError(
            f"{spec.slices} slices of {', '.join(f'{num_rows:,}' for num_rows in rows)} rows carry {sum(wanted):,} "
            f"centroids, one for four rows; expected at least the {num_centroids:,} that they are merged to: set "
            f"cluster.slices lower, cluster.num_centroids <= {sum(wanted):,}, or cluster.recipe to exact"
        )
    planned = [_Slice(number, *counts) for number, counts in enumerate(zip(rows, wanted, strict=True))]
    return [each for each in planned if each.num_centroids > 0]


def _weighted_points(slices: Parts, ranks: Ranks) -> Points:
    """This rank's blocks of the slices' centroids as rows, each with the rows of its cluster as weight."""
    counts_M = torch.cat([state.counts_K for state in slices])
    centroids_MD = torch.cat([state.centroids_KD for state in slices])
    # a cluster that its last iteration split off was never given rows
    kept_M = counts_M > 0
    points = ArrayPoints(centroids_MD[kept_M])
    weights = torch.split(counts_M[kept_M], BLOCK_ROWS)
    blocks = [replace(block, weights_N=weights_N) for block, weights_N in zip(points.blocks, weights, strict=True)]
    return Points(blocks[ranks.rank :: ranks.size], points.dim)
