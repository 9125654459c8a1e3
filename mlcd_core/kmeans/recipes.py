"""Cheaper ways to the same kind of result: what each iteration of k-means looks at.

- ``exact``: every iteration, all rows and all centroids.
- ``sample``: a share of the rows by hash, about ``sample_rows`` for each centroid, then all rows. (faiss never uses
  more than 256, and never sees the others)
- ``fast``: all rows, each against the centroids of its nearest groups (``two_level``), beside an exact probe that says
  how often that misses; then exactly.
- ``hierarchical``: starts from clustered slices of the rows (``hierarchical``), then exactly.

All end with iterations of the exact kind, so counts and objective are those of all rows. Which kind comes next follows
from the objectives so far, so a saved state goes on as an undisturbed run would. Shapes: K centroids.
"""

from dataclasses import dataclass

import torch

from mlcd_core.kmeans.assign import Assigner
from mlcd_core.kmeans.look import HashShare, Look, Probe, exact_find
from mlcd_core.kmeans.points import Points
from mlcd_core.kmeans.ranks import Ranks
from mlcd_core.kmeans.state import CentroidState
from mlcd_core.kmeans.two_level import TwoLevel
from mlcd_core.runtimes import SearchName
from mlcd_core.specs import ClusterSpec

# rows that are compared with the exact answer, and how many for each of them are not: the probe is to cost little
PROBE_ROWS = 10_000
ROWS_PER_PROBE = 64


@dataclass(frozen=True)
class Recipe:
    """The plan of one run over ``num_rows`` rows, equal on all ranks: cheap iterations, then exact ones."""

    spec: ClusterSpec
    num_rows: int
    most_cheap: int
    most_exact: int
    sample: HashShare | None = None
    num_sampled: int = 0

    def num_cheap(self, objective: tuple[float, ...]) -> int:
        """How many of the iterations are cheap: until they converge, at most ``most_cheap``."""
        converged = (n for n in range(self.most_cheap) if is_converged(objective[:n], self.spec.tolerance))
        return next(converged, self.most_cheap)

    def is_over(self, objective: tuple[float, ...]) -> bool:
        """Whether no iteration comes after these."""
        exact = objective[self.num_cheap(objective) :]
        return len(exact) >= self.most_exact or is_converged(exact, self.spec.tolerance)

    def has_converged(self, objective: tuple[float, ...]) -> bool:
        """Whether the tolerance ended the cheap iterations or the exact ones."""
        num_cheap = self.num_cheap(objective)
        return any(is_converged(part, self.spec.tolerance) for part in (objective[:num_cheap], objective[num_cheap:]))

    def look(self, state: CentroidState, device: torch.device, search: SearchName) -> Look:
        """What the iteration after ``state`` reads, and how."""
        centroids_KD = state.centroids_KD.to(device)
        find = exact_find(Assigner(centroids_KD, search=search))
        if state.iteration >= self.num_cheap(state.objective):
            return Look(self.num_rows, find)
        if self.sample is not None:
            return Look(self.num_sampled, find, sample=self.sample)
        # not the seed of the start, whose rows are the first centroids themselves
        probed = HashShare.of_about(
            min(PROBE_ROWS, -(-self.num_rows // ROWS_PER_PROBE)), self.num_rows, ~self.spec.seed
        )
        two_level = TwoLevel(centroids_KD, probes=self.spec.probes, seed=self.spec.seed)
        return Look(self.num_rows, two_level.nearest, probe=Probe(probed, find))


def plan_recipe(spec: ClusterSpec, points: Points, num_centroids: int, num_rows: int, ranks: Ranks) -> Recipe:
    """Called on all ranks. ``iterations`` count both kinds; a sample that would be all rows is exact."""
    exact = Recipe(spec, num_rows, 0, spec.most_iterations)
    most_cheap = max(0, spec.iterations - spec.final_iterations)
    most_exact = spec.iterations - most_cheap
    if spec.recipe == "fast":
        return Recipe(spec, num_rows, most_cheap, most_exact)
    if spec.recipe == "sample" and spec.sample_rows * num_centroids < num_rows:
        share = HashShare.of_about(spec.sample_rows * num_centroids, num_rows, spec.seed)
        # a handful of rows may all be above the bound, and each cluster needs one
        while (num_sampled := share.count(points, ranks)) < num_centroids:
            share = share.doubled()
        return Recipe(spec, num_rows, most_cheap, most_exact, share, num_sampled)
    return exact


def is_converged(objective: tuple[float, ...], tolerance: float) -> bool:
    """Whether the last iteration changed the objective by no more than ``tolerance`` of it; never with tolerance 0."""
    if tolerance == 0 or len(objective) < 2:
        return False
    return abs(objective[-2] - objective[-1]) <= tolerance * abs(objective[-2])
