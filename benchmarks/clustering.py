"""k-means and labels on the CPU beside faiss: python benchmarks/clustering.py --cifar10 DIR [--runs 5] [--cache DIR]

DIR holds train-*.parquet with the column jpg; only images are read. Every contender lives in a process of its own with
the same rows and threads, and they take turns. Objectives are computed again in float64 from the final centroids, and
labels are compared with a float64 search of all centroids. Writes docs/benchmarks/clustering.md.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from clustering_data import jittered_hog_words, unit_noise
from machine import describe_machine
from numpy.typing import NDArray

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "clustering.md"
THREADS = 2
SEED = 1234
ITERATIONS = 5
KMEANS_CASES = [(200_000, 4096, 256), (100_000, 8192, 512)]
LABEL_CASE = (20_000, 8192, 512)
NUM_LABELS = 16

Rows = NDArray[np.float16]


@dataclass(frozen=True)
class Outcome:
    """Seconds of one run and what it found."""

    seconds: float
    found: NDArray[Any]


def mlcd_kmeans(rows: Rows, num_centroids: int, search: str) -> Outcome:
    """``fit`` from the same starting rows as the others."""
    from mlcd_core.kmeans import ArrayPoints, ClusterSpec, fit

    spec = ClusterSpec(num_centroids=num_centroids, iterations=ITERATIONS, tolerance=0)
    init = rows[start_rows(len(rows), num_centroids)].astype(np.float32)
    started = time.perf_counter()
    clustering = fit(ArrayPoints.from_unit_rows(rows), spec, init_KD=init, search=search)
    return Outcome(time.perf_counter() - started, clustering.centroids_KD.numpy())


def faiss_kmeans(rows: Rows, num_centroids: int, _: str) -> Outcome:
    """faiss.Kmeans on all rows; its early stop is off, since it fires on a float32 objective."""
    import faiss

    points, kmeans = rows.astype(np.float32), None
    init = points[start_rows(len(rows), num_centroids)]
    kmeans = faiss.Kmeans(points.shape[1], num_centroids, early_stop_threshold=-1, **faiss_settings())
    started = time.perf_counter()
    kmeans.train(points, init_centroids=init)
    return Outcome(time.perf_counter() - started, kmeans.centroids)


def faiss_super_kmeans(rows: Rows, num_centroids: int, _: str) -> Outcome:
    """faiss.SuperKmeans takes no start, but draws the one of ``start_rows``."""
    import faiss

    points = rows.astype(np.float32)
    kmeans = faiss.SuperKmeans(points.shape[1], num_centroids, seed=SEED, **faiss_settings())
    started = time.perf_counter()
    kmeans.train(points)
    return Outcome(time.perf_counter() - started, kmeans.centroids)


def faiss_settings() -> dict[str, Any]:
    """Spherical, every row used."""
    return {
        "niter": ITERATIONS,
        "spherical": True,
        "max_points_per_centroid": 10**9,
        "min_points_per_centroid": 1,
    }


def start_rows(num_rows: int, num_centroids: int) -> NDArray[np.int32]:
    """The rows that faiss starts from with SEED."""
    import faiss

    order = np.empty(num_rows, dtype=np.int32)
    faiss.rand_perm(faiss.swig_ptr(order), num_rows, SEED + 1)
    return order[:num_centroids]


def mlcd_labels(rows: Rows, num_centroids: int, search: str) -> Outcome:
    """``nearest_centroids`` as the label stage calls it."""
    from mlcd_core.kmeans import ArrayPoints, nearest_centroids

    queries, centroids = label_problem(rows, num_centroids)
    started = time.perf_counter()
    points = ArrayPoints.from_unit_rows(queries)
    found = nearest_centroids(points, centroids, num_labels=NUM_LABELS, search=search)
    return Outcome(time.perf_counter() - started, found.ids_NL.numpy())


def faiss_labels(rows: Rows, num_centroids: int, _: str) -> Outcome:
    """faiss.knn by inner product."""
    import faiss

    queries, centroids = label_problem(rows, num_centroids)
    points = queries.astype(np.float32)
    started = time.perf_counter()
    _, ids = faiss.knn(points, centroids, NUM_LABELS, metric=faiss.METRIC_INNER_PRODUCT)
    return Outcome(time.perf_counter() - started, ids)


def label_problem(rows: Rows, num_centroids: int) -> tuple[Rows, NDArray[np.float32]]:
    """The first rows, and centroids as one iteration from other rows gives them."""
    from mlcd_core.kmeans import ArrayPoints, ClusterSpec, fit

    spec = ClusterSpec(num_centroids=num_centroids, iterations=1, tolerance=0)
    centroids = fit(ArrayPoints.from_unit_rows(rows), spec).centroids_KD.numpy()
    return rows[: LABEL_CASE[0]], centroids


Contender = Callable[[Rows, int, str], Outcome]
# int8 off, to be seen beside it; it gives the bits of the first row, so one run is enough
RUN_ONCE = "mlcd, float32 products"
KMEANS: dict[str, tuple[Contender, str]] = {
    "mlcd, int8 products (the default here)": (mlcd_kmeans, "int8"),
    "mlcd, float32 products": (mlcd_kmeans, "float32"),
    "faiss.Kmeans": (faiss_kmeans, ""),
    "faiss.SuperKmeans": (faiss_super_kmeans, ""),
}
LABELS: dict[str, tuple[Contender, str]] = {
    "mlcd, int8 products (the default here)": (mlcd_labels, "int8"),
    "mlcd, bfloat16 products": (mlcd_labels, "bfloat16"),
    "mlcd, float32 products": (mlcd_labels, "float32"),
    "faiss.knn": (faiss_labels, ""),
}


def set_threads() -> None:
    """Both libraries on the same number of threads."""
    import faiss
    import torch

    torch.set_num_threads(THREADS)
    faiss.omp_set_num_threads(THREADS)


def timed(contender: Contender, path: str, num_centroids: int, search: str) -> Outcome:
    """One run in a contender's process; its rows are read before the clock starts."""
    return contender(np.load(path), num_centroids, search)


def race(contenders: dict[str, tuple[Contender, str]], path: Path, num_centroids: int, runs: int) -> dict[str, Any]:
    """Take turns for ``runs`` rounds: name -> (seconds of each run, what the last one found)."""
    spawn = multiprocessing.get_context("spawn")
    pools = {name: ProcessPoolExecutor(1, mp_context=spawn, initializer=set_threads) for name in contenders}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in contenders}
    for turn in range(runs):
        for name, (contender, search) in contenders.items():
            if turn > 0 and (name == RUN_ONCE or (turn > 1 and is_far_behind(outcomes, name))):
                continue
            outcome = pools[name].submit(timed, contender, str(path), num_centroids, search).result()
            print(f"  run {turn + 1}, {name}: {outcome.seconds:.2f} s", flush=True)
            outcomes[name].append(outcome)
    for pool in pools.values():
        pool.shutdown()
    return {name: ([run.seconds for run in done], done[-1].found) for name, done in outcomes.items()}


def is_far_behind(outcomes: dict[str, list[Outcome]], name: str) -> bool:
    """Whether both its first runs took over three times as long as the best of faiss.Kmeans, so that two are enough."""
    best = {contender: min(run.seconds for run in done[:2]) for contender, done in outcomes.items()}
    return "faiss.Kmeans" in best and best[name] > 3 * best["faiss.Kmeans"]


def exact_objective(rows: Rows, centroids: NDArray[np.float32]) -> float:
    """Mean of 1 - cos in float64 of the nearest by float32; what that cannot tell moves the mean by less than 1e-8."""
    unit = centroids.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    coarse, total = unit.T.astype(np.float32), 0.0
    for start in range(0, len(rows), 4096):
        tile = rows[start : start + 4096]
        nearest = (tile.astype(np.float32) @ coarse).argmax(axis=1)
        total += float((1 - (tile.astype(np.float64) * unit[nearest]).sum(axis=1)).sum())
    return total / len(rows)


def share_equal(rows: Rows, num_centroids: int, ids: NDArray[Any]) -> float:
    """Share of rows whose ids, in order, are those of a float64 search with ties by the lower id."""
    queries, centroids = label_problem(rows, num_centroids)
    equal = 0
    for start in range(0, len(queries), 1000):
        scores = queries[start : start + 1000].astype(np.float64) @ centroids.T.astype(np.float64)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :NUM_LABELS]
        equal += int((order == ids[start : start + 1000]).all(axis=1).sum())
    return equal / len(queries)


def kmeans_section(kind: str, path: Path, case: tuple[int, int, int], runs: int) -> list[str]:
    """A table of one data set."""
    num_rows, num_centroids, dim = case
    rows = np.load(path)
    results = race(KMEANS, path, num_centroids, runs)
    rival = statistics.median(results["faiss.Kmeans"][0])
    objective_of_rival = exact_objective(rows, results["faiss.Kmeans"][1])
    lines = [
        f"### {kind}: {num_rows:,} x {dim}, K = {num_centroids:,}, {ITERATIONS} iterations",
        "",
        "| | median s | min to max s | GFLOP/s | times faiss.Kmeans | objective | against faiss.Kmeans |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (seconds, centroids) in results.items():
        median, objective = statistics.median(seconds), exact_objective(rows, centroids)
        rate = 2 * num_rows * num_centroids * dim * ITERATIONS / median / 1e9
        lines.append(
            f"| {name} | {median:.2f} | {min(seconds):.2f} to {max(seconds):.2f} | {rate:.0f} | "
            f"{rival / median:.2f} | {objective:.6f} | {(objective / objective_of_rival - 1) * 100:+.4f} % |"
        )
    return [*lines, ""]


def label_section(kind: str, path: Path, runs: int) -> list[str]:
    """A table of one data set."""
    num_rows, num_centroids, dim = LABEL_CASE
    rows = np.load(path)
    results = race(LABELS, path, num_centroids, runs)
    rival = statistics.median(results["faiss.knn"][0])
    lines = [
        f"### {kind}: top {NUM_LABELS} of {num_rows:,} x {dim} among {num_centroids:,}",
        "",
        "| | median s | min to max s | GFLOP/s | times faiss.knn | rows equal to float64 |",
        "|---|---|---|---|---|---|",
    ]
    for name, (seconds, ids) in results.items():
        median = statistics.median(seconds)
        rate = 2 * num_rows * num_centroids * dim / median / 1e9
        lines.append(
            f"| {name} | {median:.3f} | {min(seconds):.3f} to {max(seconds):.3f} | {rate:.0f} | {rival / median:.2f} | "
            f"{share_equal(rows, num_centroids, ids) * 100:.3f} % |"
        )
    return [*lines, ""]


def main() -> None:
    """Run all cases and write the page."""
    parser = argparse.ArgumentParser(description="k-means and labels on the CPU beside faiss")
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the rows that are made once")
    options = parser.parse_args()
    kmeans, labels = [], []
    for num_rows, num_centroids, dim in KMEANS_CASES:
        for kind, path in [
            ("Gaussian noise", unit_noise(options.cache, num_rows, dim)),
            ("CIFAR-10 hog_words", jittered_hog_words(options.cache, options.cifar10, num_rows, dim)),
        ]:
            print(f"{kind}, {num_rows} x {dim}, K = {num_centroids}", flush=True)
            kmeans += kmeans_section(kind, path, (num_rows, num_centroids, dim), options.runs)
            if dim == LABEL_CASE[2]:
                labels += label_section(kind, path, options.runs)
    PAGE.write_text("\n".join(page(kmeans, labels, options.runs)), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


def page(kmeans: list[str], labels: list[str], runs: int) -> list[str]:
    """The page in markdown."""
    return [
        "# Clustering and labels on the CPU",
        "",
        f"Written by `python benchmarks/clustering.py --cifar10 DIR --cache DIR --runs {runs}` on",
        f"{describe_machine()}, faiss-cpu {metadata.version('faiss-cpu')}; {THREADS} threads.",
        "",
        "All take turns on the same float16 unit rows, from the same starting rows; faiss gets them as float32, which",
        "is not counted in its time. Times are medians; float32 products ran once, and a contender that took three",
        "times as long as faiss.Kmeans ran twice. Objectives are the mean of 1 - cos, computed again in float64 from",
        "the final centroids. Gaussian noise is the worst case of the certificate: nothing is near anything. The",
        "`hog_words` rows are those of the CIFAR-10 training images under a codebook fitted to them (1,024 words),",
        "each repeated with noise of a quarter of its length to reach the number of rows.",
        "",
        "## k-means",
        "",
        *kmeans,
        "## Labels",
        "",
        *labels,
    ]


if __name__ == "__main__":
    main()
