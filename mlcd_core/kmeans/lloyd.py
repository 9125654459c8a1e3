"""Spherical k-means by Lloyd's iterations: assign every row to its nearest centroid, move each centroid to its rows.

All ranks run ``fit`` with their own rows, a world of one runs the same code. Per iteration the ranks add up sums,
counts and the objective; the first rank computes the next centroids and broadcasts them. The objective is the mean of
1 - cos, where the cosines are summed as integers round(cos * 2^30), so its stop rule too is the same everywhere. (faiss
>= 1.14 adds distances in float32 and stops once they reach 2^24, https://github.com/facebookresearch/faiss/issues/1962)

Shapes: N rows of this rank, K centroids, D dims.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mlcd_core.errors import ConfigError, DataError
from mlcd_core.events import Report, silent
from mlcd_core.kmeans.assign import TILE_ROWS, exact_nearest
from mlcd_core.kmeans.centroids import centroids_on_grid, next_centroids
from mlcd_core.kmeans.exact import MAX_CLUSTER_ROWS
from mlcd_core.kmeans.points import ArrayPoints, Rows
from mlcd_core.kmeans.propose import TILE_CENTROIDS
from mlcd_core.kmeans.ranks import Ranks
from mlcd_core.kmeans.start import choose_num_centroids, first_distinct_rows
from mlcd_core.kmeans.state import CentroidState
from mlcd_core.specs import ClusterSpec

COSINE_STEPS = 2**30


@dataclass(frozen=True)
class Clustering:
    """The end state, and per iteration that ran here the share of rows that changed cluster (None: not known)."""

    state: CentroidState
    converged: bool
    changed_shares: tuple[float | None, ...]

    @property
    def centroids_KD(self) -> Tensor:
        """Float32 unit rows on the 2^-24 grid, after the last update."""
        return self.state.centroids_KD

    @property
    def counts_K(self) -> Tensor:
        """Int64 rows per cluster in the last assignment; a zero is a cluster that the last update split off."""
        return self.state.counts_K

    @property
    def objective(self) -> tuple[float, ...]:
        """Mean of 1 - cos per iteration, those before a resume included."""
        return self.state.objective

    @property
    def splits(self) -> tuple[int, ...]:
        """Empty clusters per iteration, each given half of the biggest."""
        return self.state.splits

    @property
    def iterations(self) -> int:
        """Iterations done, those before a resume included."""
        return self.state.iteration


def fit(
    points: ArrayPoints,
    spec: ClusterSpec,
    *,
    init_KD: Rows | None = None,
    group: dist.ProcessGroup | None = None,
    resume: CentroidState | None = None,
    on_iteration: Callable[[CentroidState], None] | None = None,
    report: Report = silent,
    tile_rows: int = TILE_ROWS,
    tile_centroids: int = TILE_CENTROIDS,
) -> Clustering:
    """Cluster the rows of all ranks of ``group``; every rank returns the same centroids, objective and counts.

    A rank may have no rows. Starts from ``resume``, else ``init_KD``, else hash-ranked distinct rows. ``on_iteration``
    and ``report`` are called on every rank after each iteration; going on from a state gives the bits of the
    undisturbed run. With tolerance 0 all iterations run. TooFewRowsError, ConfigError, DataError: on every rank.
    """
    ranks = Ranks(group)
    num_rows = _count_rows(points, ranks)
    num_centroids = choose_num_centroids(spec, num_rows)
    if resume is not None:
        state = _checked(resume, (num_centroids, points.dim), num_rows)
    else:
        start_KD = _given(init_KD, (num_centroids, points.dim)) if init_KD is not None else None
        if start_KD is None:
            start_KD = first_distinct_rows(points, num_centroids, spec.seed, ranks)
        state = CentroidState.start(ranks.broadcast(start_KD), num_rows)

    labels_N: Tensor | None = None
    changed_shares: list[float | None] = []
    while state.iteration < spec.iterations and not is_converged(state.objective, spec.tolerance):
        step = _assign(points, state.centroids_KD, tile_rows, tile_centroids)
        num_changed = 0 if labels_N is None else int((step.labels_N != labels_N).sum())
        totals = ranks.sum(torch.tensor([step.cosine_steps, num_changed, step.num_exhaustive]))
        cosine_steps, num_changed, num_exhaustive = totals.tolist()
        counts_K = ranks.sum(step.counts_K)
        assert int(counts_K.max()) < MAX_CLUSTER_ROWS, "float64 sums are exact for 2^28 rows per cluster"
        sums_KD = ranks.sum_on_first(step.sums_KD)
        previous_KD = state.centroids_KD
        centroids_KD = next_centroids(sums_KD, counts_K, previous_KD) if ranks.is_first else previous_KD.clone()
        state = CentroidState(
            num_rows=num_rows,
            centroids_KD=ranks.broadcast(centroids_KD),
            counts_K=counts_K,
            objective=(*state.objective, 1 - cosine_steps / (num_rows * COSINE_STEPS)),
            splits=(*state.splits, int((counts_K == 0).sum())),
        )
        changed_shares.append(None if labels_N is None else num_changed / num_rows)
        labels_N = step.labels_N
        report("cluster.iteration", _event(state, changed_shares[-1], num_exhaustive))
        if on_iteration is not None:
            on_iteration(state)
    return Clustering(state, is_converged(state.objective, spec.tolerance), tuple(changed_shares))


def is_converged(objective: tuple[float, ...], tolerance: float) -> bool:
    """Whether the last iteration changed the objective by no more than ``tolerance`` of it; never with tolerance 0."""
    if tolerance == 0 or len(objective) < 2:
        return False
    return abs(objective[-2] - objective[-1]) <= tolerance * abs(objective[-2])


@dataclass(frozen=True)
class _Step:
    """One rank's share of an assignment: exact float64 sums, and the integer sum of round(cos * 2^30)."""

    labels_N: Tensor
    sums_KD: Tensor
    counts_K: Tensor
    cosine_steps: int
    num_exhaustive: int


def _assign(points: ArrayPoints, centroids_KD: Tensor, tile_rows: int, tile_centroids: int) -> _Step:
    labels_N = torch.empty(points.num_rows, dtype=torch.int32)
    sums_KD = torch.zeros(centroids_KD.shape, dtype=torch.float64)
    cosine_steps, num_exhaustive = 0, 0
    for rows, tile_BD in points.tiles(tile_rows):
        found = exact_nearest(tile_BD, centroids_KD, 1, tile_centroids)
        labels_N[rows] = found.ids_NL[:, 0]
        sums_KD.index_add_(0, labels_N[rows], tile_BD.double())
        cosine_steps += int(torch.round(found.cosines_NL * COSINE_STEPS).long().sum())
        num_exhaustive += found.num_exhaustive
    counts_K = torch.bincount(labels_N, minlength=len(centroids_KD))
    return _Step(labels_N, sums_KD, counts_K, cosine_steps, num_exhaustive)


def _count_rows(points: ArrayPoints, ranks: Ranks) -> int:
    shapes = [tuple(shape.tolist()) for shape in ranks.gather(torch.tensor([points.num_rows, points.dim]))]
    if len({dim for _, dim in shapes}) > 1:
        raise DataError(
            f"the ranks hold (rows, dims) {shapes}; expected equal dims: a rank without rows passes an empty [0, dims]"
        )
    return sum(num_rows for num_rows, _ in shapes)


def _given(init_KD: Rows, shape: tuple[int, int]) -> Tensor:
    centroids_KD = centroids_on_grid(init_KD)
    if tuple(centroids_KD.shape) != shape:
        raise ConfigError(
            f"init_KD has shape {tuple(centroids_KD.shape)}; expected (centroids, dims) = {shape}: set "
            f"cluster.num_centroids to {len(centroids_KD)} or pass other centroids"
        )
    return centroids_KD


def _checked(resume: CentroidState, shape: tuple[int, int], num_rows: int) -> CentroidState:
    found = (*resume.centroids_KD.shape, resume.num_rows)
    if found != (*shape, num_rows):
        raise ConfigError(
            f"the saved state has (centroids, dims, rows) {found}; expected {(*shape, num_rows)}: it is of another "
            "spec or other data, start without resume"
        )
    return resume


def _event(state: CentroidState, changed_share: float | None, num_exhaustive: int) -> dict[str, float | int | None]:
    return {
        "iteration": state.iteration,
        "objective": state.objective[-1],
        "changed_share": changed_share,
        "splits": state.splits[-1],
        "exhaustive_rows": num_exhaustive,
    }
