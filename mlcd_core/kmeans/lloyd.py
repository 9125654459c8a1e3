"""Spherical k-means by Lloyd's iterations: assign every row to its nearest centroid, move each centroid to its rows.

All ranks run ``fit`` with their own rows, a world of one runs the same code. Per iteration the first rank gets the sums
and counts of all rows (``rounds``), computes the next centroids and broadcasts them. The objective is the mean of
1 - cos, from the exact sums, so its stop rule too is the same everywhere. (faiss >= 1.14 adds distances in float32 and
stops once they reach 2^24, https://github.com/facebookresearch/faiss/issues/1962)

Shapes: N rows of this rank, K centroids, D dims, B blocks.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from mlcd_core.errors import ConfigError, DataError
from mlcd_core.events import Report, Value, silent
from mlcd_core.kmeans.assign import TILE_ROWS
from mlcd_core.kmeans.centroids import centroids_on_grid, next_centroids
from mlcd_core.kmeans.exact import MAX_CLUSTER_ROWS, mean_distance
from mlcd_core.kmeans.hierarchical import FitPart, merged_slices
from mlcd_core.kmeans.look import Look
from mlcd_core.kmeans.partial import PartialSums, Tally
from mlcd_core.kmeans.points import Points, Rows
from mlcd_core.kmeans.ranks import Ranks
from mlcd_core.kmeans.recipes import plan_recipe
from mlcd_core.kmeans.rounds import RowSummer
from mlcd_core.kmeans.saving import UNDISTURBED, Saving
from mlcd_core.kmeans.start import first_distinct_rows
from mlcd_core.kmeans.state import CentroidState
from mlcd_core.runtimes import SearchName
from mlcd_core.specs import ClusterSpec


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
    points: Points,
    spec: ClusterSpec,
    *,
    init_KD: Rows | None = None,
    group: dist.ProcessGroup | None = None,
    resume: CentroidState | None = None,
    saving: Saving = UNDISTURBED,
    on_iteration: Callable[[CentroidState], None] | None = None,
    report: Report = silent,
    search: SearchName = "auto",
    tile_rows: int = TILE_ROWS,
    device: torch.device | str = "cpu",
) -> Clustering:
    """Cluster the rows of all ranks of ``group``; every rank returns the same centroids, objective and counts.

    A rank may have no rows. Starts from ``resume``, else ``init_KD``, else what the recipe says: merged slices or
    hash-ranked distinct rows. Going on from a state, or inside an iteration (``saving``), gives the bits of the
    undisturbed run. With tolerance 0 all iterations run. ``on_iteration`` and ``report`` are called on every rank after
    each iteration over all rows; those of slices go to ``saving`` alone.

    TooFewRowsError, ConfigError, DataError: on every rank. WorkerLostError: another rank died.
    """
    ranks = Ranks(group)
    num_rows = _count_rows(points, ranks)
    num_centroids = spec.centroids_of(num_rows)
    recipe = plan_recipe(spec, points, num_centroids, num_rows, ranks)
    if resume is None:
        part_saving = Saving(before_block=saving.before_block)
        fit_part = functools.partial(
            fit, group=group, saving=part_saving, search=search, tile_rows=tile_rows, device=device
        )
        start_KD = _start(points, spec, num_centroids, ranks, init_KD, fit_part, saving, report)
        state = CentroidState.start(ranks.broadcast(start_KD), num_rows)
    else:
        state = _checked(resume, (num_centroids, points.dim), num_rows)
    summer = _begun_summer(points, state, ranks, saving, torch.device(device), tile_rows)
    changed_shares: list[float | None] = []
    while not recipe.is_over(state.objective):
        started_s = saving.clock()
        look = recipe.look(state, summer.device, search)
        num_before = summer.num_rows_begun
        sums = summer.sum(state, look, saving.save_after(state))
        update = _update(state, look, sums, num_before)
        del sums  # the next ones need their memory
        update = update.of_first(ranks)
        state = update.applied_to(state)
        changed_shares.append(update.changed_share(look))
        report("cluster.iteration", _event(state, look, update, saving.clock() - started_s))
        if on_iteration is not None:
            on_iteration(state)
    return Clustering(state, recipe.has_converged(state.objective), tuple(changed_shares))


@dataclass(frozen=True)
class _Update:
    """What an iteration comes to: the next centroids, the counts and objective of the last, and the rows summed now."""

    centroids_KD: Tensor
    counts_K: Tensor
    objective: float
    tally: Tally

    def of_first(self, ranks: Ranks) -> "_Update":
        """The first rank's, on all."""
        numbers = torch.tensor([self.objective, *vars(self.tally).values()], dtype=torch.float64)
        objective, *counted = ranks.broadcast(numbers).tolist()
        counts_K = ranks.broadcast(self.counts_K)
        return _Update(ranks.broadcast(self.centroids_KD), counts_K, objective, Tally(*map(int, counted)))

    def applied_to(self, state: CentroidState) -> CentroidState:
        """The state one iteration later."""
        return CentroidState(
            num_rows=state.num_rows,
            centroids_KD=self.centroids_KD,
            counts_K=self.counts_K,
            objective=(*state.objective, self.objective),
            splits=(*state.splits, int((self.counts_K == 0).sum())),
        )

    def changed_share(self, look: Look) -> float | None:
        """Rows that changed cluster, of all that were read; None: not known of each."""
        return None if self.tally.unknown else self.tally.changed / look.num_rows


def _update(state: CentroidState, look: Look, sums: PartialSums | None, num_before: int) -> _Update:
    """Of the first rank's sums, ``num_before`` rows of which were summed before a stop; without sums only shapes."""
    if sums is None:
        return _Update(torch.empty_like(state.centroids_KD), torch.empty_like(state.counts_K), 0.0, Tally())
    tally, counts_K = sums.tally, sums.counts_K
    assert tally.rows == look.num_rows, f"{tally.rows} rows were summed of {look.num_rows}"
    assert int(counts_K.max()) < MAX_CLUSTER_ROWS, "float64 sums are exact for 2^28 rows per cluster"
    objective = mean_distance(sums.sums_KD, state.centroids_KD, look.num_rows)
    centroids_KD = next_centroids(sums.sums_KD, counts_K, state.centroids_KD)
    return _Update(centroids_KD, counts_K, objective, replace(tally, rows=tally.rows - num_before))


def _event(state: CentroidState, look: Look, update: _Update, seconds: float) -> dict[str, Value]:
    tally = update.tally
    return {
        "iteration": state.iteration,
        "objective": state.objective[-1],
        "changed_share": update.changed_share(look),
        "splits": state.splits[-1],
        "exhaustive_rows": tally.exhaustive,
        "rows": tally.rows,
        "used_rows": look.num_rows,
        "recall": tally.equal / tally.probed if tally.probed else None,
        "seconds": seconds,
    }


def _count_rows(points: Points, ranks: Ranks) -> int:
    shapes = [tuple(shape.tolist()) for shape in ranks.gather(torch.tensor([points.weight, points.dim]))]
    if len({dim for _, dim in shapes}) > 1:
        raise DataError(
            f"the ranks hold (rows, dims) {shapes}; expected equal dims: a rank without rows passes an empty [0, dims]"
        )
    return sum(num_rows for num_rows, _ in shapes)


def _start(
    points: Points,
    spec: ClusterSpec,
    num_centroids: int,
    ranks: Ranks,
    init_KD: Rows | None,
    fit_part: FitPart,
    saving: Saving,
    report: Report,
) -> Tensor:
    """The first centroids; only the first rank's count."""
    if init_KD is not None:
        return _given(init_KD, (num_centroids, points.dim))
    if spec.recipe == "hierarchical":
        _check_block_owners(points, _count_blocks(points, ranks), ranks)
        return merged_slices(
            points, spec, num_centroids, ranks, fit_part, saved=saving.parts, on_parts=saving.on_parts, report=report
        )
    return first_distinct_rows(points, num_centroids, spec.seed, ranks)


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


def _begun_summer(
    points: Points, state: CentroidState, ranks: Ranks, saving: Saving, device: torch.device, tile_rows: int
) -> RowSummer:
    """Goes on from the saved sums, which it alone holds from here on."""
    partial = saving.read_partial() if ranks.is_first else None
    return RowSummer(
        points,
        ranks,
        done_B=_done_blocks(points, state, partial, ranks, is_saved=saving.on_partial is not None),
        begun=partial,
        device=device,
        tile_rows=tile_rows,
        round_seconds=saving.round_seconds,
        clock=saving.clock,
        before_block=saving.before_block,
    )


def _done_blocks(
    points: Points, state: CentroidState, partial: PartialSums | None, ranks: Ranks, *, is_saved: bool
) -> Tensor:
    """Bool by block number, equal on all ranks: what the first rank's partial sums hold. Raises on every rank."""
    num_blocks = _count_blocks(points, ranks)
    expected = [state.iteration, state.num_rows, num_blocks, *state.centroids_KD.shape]
    shape = [-1] * len(expected)
    if partial is not None:
        shape = [partial.iteration, partial.num_rows, len(partial.done_B), *partial.sums_KD.shape]
    found = ranks.broadcast(torch.tensor(shape)).tolist()
    is_begun = found[0] >= 0
    if is_begun and found != expected:
        raise ConfigError(
            f"the partial sums have (iteration, rows, blocks, centroids, dims) {found}; expected {expected}: they are "
            "of another state, spec or data, start without partial"
        )
    if is_begun or is_saved:
        _check_block_owners(points, num_blocks, ranks)
    done_B = torch.zeros(num_blocks, dtype=torch.int32)
    if partial is not None:
        done_B = partial.done_B.int()
    return ranks.broadcast(done_B).bool()


def _count_blocks(points: Points, ranks: Ranks) -> int:
    largest = max((block.number for block in points.blocks), default=-1)
    return 1 + max(int(number) for number in ranks.gather(torch.tensor(largest)))


def _check_block_owners(points: Points, num_blocks: int, ranks: Ranks) -> None:
    owners_B = torch.zeros(num_blocks, dtype=torch.int32)
    for block in points.blocks:
        owners_B[block.number] += 1
    if bool((ranks.sum(owners_B) > 1).any()):
        raise ConfigError(
            f"block {int((owners_B > 1).nonzero()[0])} belongs to more than one rank; expected block numbers of all "
            "ranks together, which saved sums and slices go by: pass first_block to ArrayPoints"
        )
