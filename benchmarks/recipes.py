"""What the k-means recipes save, and what it costs: python benchmarks/recipes.py --cifar10 DIR --cache DIR [--runs 3]

DIR of --cifar10 holds train-*.parquet with the column jpg; only images are read. All runs take turns in one process, on
the same rows. Objectives are computed again in float64 from the final centroids, over all rows. Writes
docs/benchmarks/recipes.md.
"""

import argparse
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clustering_data import jittered_hog_words, unit_noise
from machine import describe_machine
from numpy.typing import NDArray

from mlcd_core.kmeans import ArrayPoints, ClusterSpec, fit
from mlcd_core.kmeans.two_level import GROUP_ITERATIONS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "recipes.md"
THREADS = 2
NUM_ROWS, NUM_CENTROIDS, DIM = 200_000, 4096, 256
ITERATIONS = 20
EXACT_ITERATIONS = (1, 2, 3, 5, 10, ITERATIONS)
FINAL_ITERATIONS = (1, 2, 3)
NUM_BLOCKS = 8  # two for each slice
PROBES, SLICES = 8, 4

Rows = NDArray[np.float16]


@dataclass(frozen=True)
class Outcome:
    """One run: seconds, dots of a row and a centroid, its centroids, and the recall of its fast iterations."""

    seconds: float
    dots: float
    centroids: NDArray[np.float32]
    recalls: list[float]


def contenders(num_rows: int, num_centroids: int) -> dict[str, ClusterSpec]:
    """Name -> what runs. The sample is a quarter of the rows: more than that for each centroid would be all of them."""
    common = {"num_centroids": num_centroids, "tolerance": 0.0}
    specs = {f"exact, {n}": ClusterSpec(iterations=n, **common) for n in EXACT_ITERATIONS}
    fields: dict[str, dict[str, Any]] = {
        "sample": {"sample_rows": max(4, num_rows // num_centroids // 4)},
        "fast": {"probes": PROBES},
        "hierarchical": {"slices": SLICES},
    }
    for recipe, own in fields.items():
        for final in FINAL_ITERATIONS:
            spec = ClusterSpec(recipe=recipe, iterations=ITERATIONS, final_iterations=final, **own, **common)
            specs[f"{recipe}, {final} exact"] = spec
    return specs


def run(rows: Rows, spec: ClusterSpec) -> Outcome:
    """One clustering of all rows."""
    events: list[tuple[str, Mapping[str, Any]]] = []
    points = ArrayPoints.from_unit_rows(rows, block_rows=-(-len(rows) // NUM_BLOCKS))
    started = time.perf_counter()
    found = fit(points, spec, report=lambda event, values: events.append((event, dict(values))))
    seconds = time.perf_counter() - started
    dots = sum(dots_of(event, values, len(found.centroids_KD), spec.probes) for event, values in events)
    recalls = [values["recall"] for _, values in events if values.get("recall") is not None]
    return Outcome(seconds, dots, found.centroids_KD.numpy(), recalls)


def dots_of(event: str, values: Mapping[str, Any], num_centroids: int, probes: int) -> float:
    """How many rows were compared with how many centroids; a fast iteration also makes groups, and has its probe."""
    if event == "cluster.part":
        return float(values["rows"] * values["centroids"] * values["iterations"])
    if values["recall"] is None:
        return float(values["used_rows"] * num_centroids)
    groups = isqrt(num_centroids)
    each_row = groups + min(probes, groups) * num_centroids / groups
    probed = min(10_000, values["used_rows"] / 64)
    return values["used_rows"] * each_row + probed * num_centroids + (GROUP_ITERATIONS + 1) * num_centroids * groups


def exact_objective(rows: Rows, centroids: NDArray[np.float32]) -> float:
    """Mean of 1 - cos in float64."""
    unit = centroids.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    best = [(rows[start : start + 4096].astype(np.float64) @ unit.T).max(axis=1) for start in range(0, len(rows), 4096)]
    return float(1 - np.concatenate(best).mean())


def section(kind: str, rows: Rows, num_centroids: int, runs: int) -> list[str]:
    """A table of one data set."""
    specs = contenders(len(rows), num_centroids)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in specs}
    for turn in range(runs):
        for name, spec in specs.items():
            outcomes[name].append(run(rows, spec))
            print(f"  run {turn + 1}, {name}: {outcomes[name][-1].seconds:.2f} s", flush=True)
    reference = outcomes[f"exact, {ITERATIONS}"][0]
    reference_objective = exact_objective(rows, reference.centroids)
    lines = [
        f"## {kind}: {len(rows):,} x {rows.shape[1]}, K = {num_centroids:,}",
        "",
        "| recipe | median s | min to max s | distance computations | objective | above 20 exact | recall |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, done in outcomes.items():
        seconds = [outcome.seconds for outcome in done]
        objective = exact_objective(rows, done[0].centroids)
        recalls = [f"{recall:.3f}" for recall in done[0].recalls]
        lines.append(
            f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f} | "
            f"{done[0].dots / reference.dots * 100:.1f} % | {objective:.6f} | "
            f"{(objective / reference_objective - 1) * 100:+.3f} % | "
            f"{f'{recalls[0]} to {recalls[-1]}' if recalls else ''} |"
        )
    return [*lines, ""]


def page(sections: list[str], runs: int) -> list[str]:
    """The page in markdown."""
    return [
        "# Recipes of k-means: objective against time",
        "",
        f"Written by `python benchmarks/recipes.py --cifar10 DIR --cache DIR --runs {runs}` on",
        f"{describe_machine()}; {THREADS} threads.",
        "",
        f"`exact, n` runs n iterations. The others run {ITERATIONS} iterations of which the last 1, 2 or 3 are exact;",
        f"`sample` uses a quarter of the rows before, `fast` {PROBES} of {isqrt(NUM_CENTROIDS)} groups of centroids,",
        f"and `hierarchical` clusters {SLICES} slices by {ITERATIONS} iterations each and merges them before.",
        "Distance computations are shares of those of 20 exact iterations. Objectives are the mean of 1 - cos over all",
        "rows, computed again in float64 from the final centroids. Recall is the share of probed rows whose nearest",
        "centroid a fast iteration found, in the first and in the last of them. Gaussian noise is the hardest data:",
        "nothing is near anything.",
        "",
        *sections,
    ]


def main() -> None:
    """Run both data sets and write the page."""
    parser = argparse.ArgumentParser(description="objective against time of the k-means recipes")
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the rows that are made once")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    sections = []
    for kind, path in [
        ("Gaussian noise", unit_noise(options.cache, NUM_ROWS, DIM)),
        ("CIFAR-10 hog_words", jittered_hog_words(options.cache, options.cifar10, NUM_ROWS, DIM)),
    ]:
        print(kind, flush=True)
        sections += section(kind, np.load(path), NUM_CENTROIDS, options.runs)
    PAGE.write_text("\n".join(page(sections, options.runs)), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
