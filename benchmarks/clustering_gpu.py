"""Search and k-means on one GPU beside the libraries: PYTHONPATH=. python benchmarks/clustering_gpu.py [--dim 768]

Top 1 and top 10 of unit rows among 65,536 and 1,000,000 centroids: our searches, faiss, flashlib (what is installed)
and the way of the MLCD authors' scripts (128 rows at a time, all scores in float32, then topk). Then Lloyd iterations
from the same start. Needs what mlcd_core needs, and triton. Writes docs/benchmarks/clustering-gpu.md.
"""

import argparse
import importlib
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlcd_core.kmeans.assign import Assigner
from mlcd_core.kmeans.centroids import next_centroids
from mlcd_core.kmeans.exact import UNIT_TOLERANCE, unit_rows_on_grid
from mlcd_core.kmeans.shortlist import best_of
from mlcd_core.kmeans.triton_search import TritonSearch

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "clustering-gpu.md"

AUTHORS_ROWS = 128
CHECKED_ROWS = 256
ROUNDS = 3
TILE_ROWS = 65_536


@dataclass(frozen=True)
class Contestant:
    """``search`` takes float16 rows [B, D] and gives ids [B, L] in any order; timed on ``num_rows`` rows."""

    name: str
    num_rows: int
    search: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Result:
    """Median seconds of a search, and the share of checked rows whose ids are those of the float64 scores."""

    contestant: Contestant
    seconds: float
    equal_share: float

    @property
    def rows_per_s(self) -> float:
        """Rows searched per second."""
        return self.contestant.num_rows / self.seconds


def unit_rows(num_rows: int, dim: int, seed: int) -> Tensor:
    """Float16 unit rows on the GPU, around 100,000 directions that are the same for every seed."""
    shared = torch.Generator("cuda").manual_seed(0)
    directions = torch.randn(100_000, dim, device="cuda", generator=shared)
    own = torch.Generator("cuda").manual_seed(seed)
    rows_ND = torch.empty(num_rows, dim, dtype=torch.float16, device="cuda")
    for tile_BD in torch.split(rows_ND, TILE_ROWS):
        chosen_B = torch.randint(len(directions), (len(tile_BD),), device="cuda", generator=own)
        noise_BD = torch.randn(tile_BD.shape, device="cuda", generator=own)
        tile_BD.copy_(torch.nn.functional.normalize(directions[chosen_B] + noise_BD, dim=1))
        assert bool(((tile_BD.double().norm(dim=1) - 1).abs() <= UNIT_TOLERANCE).all())
    return rows_ND


def grid_centroids(num_centroids: int, dim: int) -> Tensor:
    """Centroids on the GPU, prepared as the stage prepares its first ones."""
    return unit_rows_on_grid(unit_rows(num_centroids, dim, seed=1).cpu().double()).cuda()


def contestants(centroids_KD: Tensor, num_labels: int, num_rows: int) -> list[Contestant]:
    """What can be timed here; the centroids of each are prepared before."""
    assigner = Assigner(centroids_KD, num_labels=num_labels)
    triton_search = TritonSearch(centroids_KD, "cuda")
    found = [
        Contestant("exact labels (Assigner)", num_rows, lambda rows_BD: assigner.nearest(rows_BD).ids_NL.long()),
        Contestant(
            "Triton candidates, float64 rerank",
            num_rows,
            lambda rows_BD: reranked(triton_search, centroids_KD, rows_BD, num_labels),
        ),
        Contestant(
            "the authors' way",
            max(AUTHORS_ROWS, num_rows // 64 // AUTHORS_ROWS * AUTHORS_ROWS),
            lambda rows_BD: authors_way(rows_BD, centroids_KD, num_labels),
        ),
    ]
    if has_faiss_gpu():
        for name, use_float16 in (("faiss float32", False), ("faiss float16", True)):
            index = faiss_index(centroids_KD, use_float16=use_float16)
            found.append(
                Contestant(name, num_rows // 8, lambda rows_BD, index=index: faiss_way(index, rows_BD, num_labels))
            )
    if find_spec("flashlib"):
        flash_knn = importlib.import_module("flashlib").flash_knn
        half_KD = centroids_KD.half()
        found.append(
            Contestant(
                "flashlib flash_knn", num_rows, lambda rows_BD: flash_knn(rows_BD, half_KD, num_labels)[1].long()
            )
        )
    return found


def reranked(search: Any, centroids_KD: Tensor, rows_BD: Tensor, num_labels: int) -> Tensor:
    """The best of a search's candidates by exact score; rows the certificate leaves open are not searched again."""
    ids_BL, _ = best_of(rows_BD, centroids_KD, search.propose(rows_BD, num_labels), num_labels)
    return ids_BL


def authors_way(rows_BD: Tensor, centroids_KD: Tensor, num_labels: int) -> Tensor:
    """All scores of 128 rows in float32, then topk."""
    ids = [
        torch.einsum("bd,kd->bk", tile_BD.float(), centroids_KD).topk(num_labels, dim=1).indices
        for tile_BD in torch.split(rows_BD, AUTHORS_ROWS)
    ]
    return torch.cat(ids)


def has_faiss_gpu() -> bool:
    """Whether the installed faiss can use a GPU."""
    return find_spec("faiss") is not None and hasattr(importlib.import_module("faiss"), "StandardGpuResources")


def faiss_index(centroids_KD: Tensor, *, use_float16: bool) -> Any:
    """A flat inner-product index on the GPU."""
    faiss = importlib.import_module("faiss")
    config = faiss.GpuIndexFlatConfig()
    config.useFloat16 = use_float16
    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), centroids_KD.shape[1], config)
    index.add(centroids_KD.cpu().numpy())
    return index


def faiss_way(index: Any, rows_BD: Tensor, num_labels: int) -> Tensor:
    """Rows come from host memory, as a caller of faiss has them; the copy is a few percent of the time."""
    return torch.from_numpy(index.search(rows_BD.float().cpu().numpy(), num_labels)[1]).cuda()


def timed(searches: list[Contestant], rows_ND: Tensor, expected_ids: Tensor) -> list[Result]:
    """Median of interleaved rounds, after one call each that compiles, tunes and is checked."""
    wanted = expected_ids.sort(dim=1).values
    shares = []
    for one in searches:
        checked = one.search(rows_ND[: one.num_rows])[: len(wanted)].sort(dim=1).values
        shares.append(float((checked == wanted[: len(checked)]).all(dim=1).double().mean()))
    seconds: list[list[float]] = [[] for _ in searches]
    for _ in range(ROUNDS):
        for one, times in zip(searches, seconds, strict=True):
            times.append(measured(lambda one=one: one.search(rows_ND[: one.num_rows])))
    return [
        Result(one, statistics.median(times), share)
        for one, times, share in zip(searches, seconds, shares, strict=True)
    ]


def measured(work: Callable[[], object]) -> float:
    """Wall seconds, the GPU's work included."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def float64_labels(rows_BD: Tensor, centroids_KD: Tensor, num_labels: int) -> Tensor:
    """Ids of the highest float64 scores, from whole products."""
    ids = [
        torch.cat([tile_BD.double() @ part_KD.double().T for part_KD in torch.split(centroids_KD, TILE_ROWS)], dim=1)
        .topk(num_labels, dim=1)
        .indices
        for tile_BD in torch.split(rows_BD, 64)
    ]
    return torch.cat(ids)


def lloyd(rows_ND: Tensor, start_KD: Tensor, iterations: int) -> tuple[Tensor, float, float]:
    """(centroids, seconds of assignment and sums, seconds of the updates)."""
    centroids_KD, assign_s, update_s = start_KD, 0.0, 0.0
    for _ in range(iterations):
        sums_KD = torch.zeros(centroids_KD.shape, dtype=torch.float64, device="cuda")
        counts_K = torch.zeros(len(centroids_KD), dtype=torch.int64, device="cuda")

        def assign(assigner: Assigner, sums_KD: Tensor = sums_KD, counts_K: Tensor = counts_K) -> None:
            for tile_BD in torch.split(rows_ND, TILE_ROWS):
                ids_B = assigner.nearest(tile_BD).ids_NL[:, 0].long()
                sums_KD.index_add_(0, ids_B, tile_BD.double())
                counts_K.add_(torch.bincount(ids_B, minlength=len(counts_K)))

        assign_s += measured(lambda centroids_KD=centroids_KD: assign(Assigner(centroids_KD)))
        start = time.perf_counter()
        centroids_KD = next_centroids(sums_KD.cpu(), counts_K.cpu(), centroids_KD.cpu()).cuda()
        update_s += time.perf_counter() - start
    return centroids_KD, assign_s, update_s


def objective(rows_ND: Tensor, directions_KD: Tensor) -> float:
    """Mean of 1 - cos to the nearest of any centroids, all judged alike."""
    assigner = Assigner(unit_rows_on_grid(directions_KD.cpu().double()).cuda())
    total = sum(float(assigner.nearest(tile_BD).cosines_NL.sum()) for tile_BD in torch.split(rows_ND, TILE_ROWS))
    return 1 - total / len(rows_ND)


def search_rows(num_labels: int, centroids_KD: Tensor, results: list[Result]) -> list[str]:
    """Table rows; ratios are to the first, ours."""
    num_centroids, dim = centroids_KD.shape
    lines = []
    for result in results:
        tflops = 2 * result.rows_per_s * num_centroids * dim / 1e12
        ratio = results[0].rows_per_s / result.rows_per_s
        lines.append(
            f"| {num_centroids:,} | {num_labels} | {result.contestant.name} | {result.contestant.num_rows:,} | "
            f"{result.seconds:.3f} | {result.rows_per_s:,.0f} | {tflops:.0f} | {ratio:.2f} | {result.equal_share:.1%} |"
        )
    return lines


def lloyd_rows(num_rows: int, num_centroids: int, dim: int, iterations: int) -> list[str]:
    """Table rows of a few iterations, ours and flashlib's."""
    rows_ND, start_KD = unit_rows(num_rows, dim, seed=3), grid_centroids(num_centroids, dim)
    size = f"| {num_rows:,} | {num_centroids:,} | {iterations} "
    centroids_KD, assign_s, update_s = lloyd(rows_ND, start_KD, iterations)
    value = objective(rows_ND, centroids_KD)
    name = f"exact, assignment {assign_s:.1f} s, updates {update_s:.1f} s"
    lines = [f"{size}| {name} | {assign_s + update_s:.1f} | {value:.6f} |"]
    if find_spec("flashlib"):
        flash_kmeans = importlib.import_module("flashlib").flash_kmeans
        start = start_KD.half()[None]
        options = {"n_clusters": num_centroids, "max_iters": iterations, "tol": 0.0}
        flash_kmeans(rows_ND[None], **{**options, "max_iters": 1}, init_centroids=start.clone())  # compiles
        found: list[Tensor] = []
        seconds = measured(
            lambda: found.append(flash_kmeans(rows_ND[None], **options, init_centroids=start.clone())[1][0])
        )
        lines.append(f"{size}| flashlib flash_kmeans | {seconds:.1f} | {objective(rows_ND, found[0].float()):.6f} |")
    return lines


def describe_gpu() -> str:
    """The card, the host and the libraries that matter."""
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    names = ("torch", "triton", "numpy", "faiss-gpu", "flashlib")
    libraries = ", ".join(f"{name} {version}" for name in names if (version := installed_version(name)))
    cores = len(os.sched_getaffinity(0))
    card = f"{torch.cuda.get_device_name(0)} ({memory:.0f} GiB)"
    return f"{card}, {cores} cores, Python {platform.python_version()}, {libraries}"


def installed_version(name: str) -> str | None:
    """None when it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def page(command: str, searches: list[str], iterations: list[str]) -> str:
    """The page in markdown."""
    lines = [
        "# Clustering and labels on a GPU",
        "",
        f"Written by `{command}` on {describe_gpu()}.",
        "",
        f"Medians of {ROUNDS} interleaved rounds after a first call. `x` is the speed of the first line of its group",
        f"over that line. `equal` is the share of {CHECKED_ROWS} rows whose ids are those of the float64 scores.",
        "The candidates of one Triton search are reranked, but rows it cannot settle are not searched again there.",
        "",
        "| centroids | labels | search | rows | s | rows/s | TFLOP/s | x | equal |",
        "|---|---|---|---|---|---|---|---|---|",
        *searches,
        "",
        "Lloyd iterations from the same start. The objective is the mean of 1 - cos to the nearest final centroid.",
        "",
        "| rows | centroids | iterations | what | s | objective |",
        "|---|---|---|---|---|---|",
        *iterations,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Time all and write the page."""
    parser = argparse.ArgumentParser(description="clustering and labels on a GPU, measured")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--rows", type=int, default=65_536, help="rows per timed search")
    parser.add_argument("--centroids", type=int, nargs="+", default=[65_536, 1_000_000])
    parser.add_argument("--lloyd-rows", type=int, default=4_000_000)
    parser.add_argument("--lloyd-centroids", type=int, default=1_000_000)
    parser.add_argument("--iterations", type=int, default=3)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA device, and torch sees none: run it on a GPU machine")
    searches = []
    rows_ND = unit_rows(options.rows, options.dim, seed=2)
    for num_centroids in options.centroids:
        centroids_KD = grid_centroids(num_centroids, options.dim)
        for num_labels in (1, 10):
            expected_ids = float64_labels(rows_ND[:CHECKED_ROWS], centroids_KD, num_labels)
            results = timed(contestants(centroids_KD, num_labels, options.rows), rows_ND, expected_ids)
            searches += search_rows(num_labels, centroids_KD, results)
            print("\n".join(searches), flush=True)
    iterations = lloyd_rows(options.lloyd_rows, options.lloyd_centroids, options.dim, options.iterations)
    command = " ".join(["PYTHONPATH=. python benchmarks/clustering_gpu.py", *sys.argv[1:]])
    PAGE.write_text(page(command, searches, iterations), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
