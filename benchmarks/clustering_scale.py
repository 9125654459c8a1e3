"""k-means where counters, sums and rows are large: python benchmarks/clustering_scale.py [--rows 40000000]

Many rows in few clusters (faiss stops early there, since it adds its objective in float32), many clusters in few dims,
and files of rows that are larger than the memory that may be used. Objectives are checked against float64. Writes
docs/benchmarks/clustering-scale.md.
"""

import argparse
import multiprocessing
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from numpy.typing import NDArray

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "clustering-scale.md"
THREADS = 2
CHUNK = 1_000_000
DRIVER_ROWS, DRIVER_DIM, PART_ROWS = (200_000, 4_000_000), 64, 50_000


@dataclass(frozen=True)
class Case:
    """Rows of one file and how they are clustered."""

    title: str
    num_rows: int
    dim: int
    num_centroids: int
    iterations: int


@dataclass(frozen=True)
class Outcome:
    """``centroids`` are those that the last iteration assigned rows to; ``anonymous`` bytes beyond the start."""

    seconds: float
    objective: tuple[float, ...]
    centroids: NDArray[np.float32]
    anonymous: int


def write_unit_rows(path: Path, case: Case) -> None:
    """Float16 unit rows around one direction; written in chunks."""
    random = np.random.default_rng(0)
    rows = np.lib.format.open_memmap(path, "w+", np.float16, (case.num_rows, case.dim))
    for start in range(0, case.num_rows, CHUNK):
        chunk = random.standard_normal((min(CHUNK, case.num_rows - start), case.dim)) + 0.5
        rows[start : start + CHUNK] = chunk / np.linalg.norm(chunk, axis=1, keepdims=True)
    rows.flush()


def mlcd_kmeans(path: Path, case: Case) -> Outcome:
    """``fit`` over mapped rows, from the check of the rows to the last iteration."""
    import torch

    from mlcd_core.kmeans import ArrayPoints, CentroidState, ClusterSpec, fit

    torch.set_num_threads(THREADS)
    torch.ones(64, 64) @ torch.ones(64, 64)  # its workspaces are not the data's
    states: list[CentroidState] = []

    def keep_two(state: CentroidState) -> None:
        states.append(state)
        del states[:-2]

    spec = ClusterSpec(num_centroids=case.num_centroids, iterations=case.iterations, tolerance=0)
    with AnonymousPeak() as memory:
        started = time.perf_counter()
        points = ArrayPoints.from_unit_rows(np.load(path, mmap_mode="r"))
        clustering = fit(points, spec, on_iteration=keep_two)
        seconds = time.perf_counter() - started
    return Outcome(seconds, clustering.objective, states[0].centroids_KD.numpy(), memory.growth)


def faiss_iterations(path: Path, case: Case) -> tuple[int, float]:
    """What faiss.Kmeans with its defaults reports: iterations that ran, and the last sum of distances."""
    import faiss

    faiss.omp_set_num_threads(THREADS)
    kmeans = faiss.Kmeans(case.dim, case.num_centroids, niter=case.iterations, max_points_per_centroid=10**9)
    kmeans.train(np.load(path).astype(np.float32))
    return len(kmeans.obj), float(kmeans.obj[-1])


class AnonymousPeak:
    """The most anonymous memory of this process beyond what it had on entry, looked at every 20 ms."""

    def __enter__(self) -> "AnonymousPeak":
        self._before = self._most = anonymous_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.growth = self._most - self._before

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self._most = max(self._most, anonymous_bytes())


def anonymous_bytes() -> int:
    """Anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) * 1024


def driver_growth(folder: Path, num_rows: int, dim: int) -> int:
    """Anonymous memory that the process which drives two workers takes for ``num_rows`` stored rows, in bytes."""
    from mlcd_core.embedded_points import block_ranges
    from mlcd_core.events import silent
    from mlcd_core.images.embed_shard import embedding_table, ipc_bytes
    from mlcd_core.runtimes import ClusterRuntime
    from mlcd_core.specs import ClusterSpec, EmbedSpec
    from mlcd_core.store import LocalFiles, StageFolder
    from tasks.cluster_actors import run_workers
    from tasks.cluster_worker import RankJob
    from tasks.ray_session import RaySession
    from tasks.work import ChainAddress

    root, random, parts = folder / f"root-{num_rows}", np.random.default_rng(0), []
    for start in range(0, num_rows, PART_ROWS):
        chunk = random.standard_normal((min(PART_ROWS, num_rows - start), dim))
        unit = (chunk / np.linalg.norm(chunk, axis=1, keepdims=True)).astype(np.float16)
        rows = np.arange(len(unit))
        data = ipc_bytes(embedding_table(rows, [str(row) for row in rows], np.zeros(len(unit), np.int8), unit))
        part = StageFolder(LocalFiles(root), EmbedSpec()).put("part", ".arrow", data, rows=len(unit), usable=len(unit))
        parts.append(replace(part, offset=start))
    spec = ClusterSpec(num_centroids=64, iterations=3, tolerance=0)
    last_number = spec.iterations * len(block_ranges(parts))
    links = ChainAddress(str(root), spec, {"embed": "0" * 64}, attempt=1, last_number=last_number)
    with RaySession(most_workers=2) as session:
        session.start()
        job = RankJob(links, tuple(parts), ClusterRuntime(workers=2), "cpu", spec.num_centroids, silent)
        with AnonymousPeak() as memory:
            run_workers(job, world=2, report=silent)
    return memory.growth


def exact_objective(path: Path, centroids: NDArray[np.float32]) -> float:
    """Mean of 1 - cos of the stored rows and the given centroids, both as they are, in float64."""
    rows, total = np.load(path, mmap_mode="r"), 0.0
    step = max(1, 2**27 // len(centroids))
    for start in range(0, len(rows), step):
        cosines = rows[start : start + step].astype(np.float64) @ centroids.T.astype(np.float64)
        total += float((1 - cosines.max(axis=1)).sum())
    return total / len(rows)


def apart(function: Any, *arguments: Any) -> Any:
    """Call it in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def section(case: Case, folder: Path, *, beside_faiss: bool, checked: bool) -> list[str]:
    """One case, run and told."""
    path = folder / f"rows-{case.num_rows}x{case.dim}.npy"
    write_unit_rows(path, case)
    found: Outcome = apart(mlcd_kmeans, path, case)
    lines = [
        f"## {case.title}",
        "",
        f"{case.num_rows:,} x {case.dim} ({path.stat().st_size / 1e9:.2f} GB), K = {case.num_centroids:,}: "
        f"{len(found.objective)} of {case.iterations} iterations in {found.seconds:.0f} s; anonymous memory grew by "
        f"{found.anonymous / 1e6:.0f} MB at most.",
    ]
    if checked:
        difference = abs(found.objective[-1] - exact_objective(path, found.centroids))
        lines += [f"Last objective {found.objective[-1]:.12f}, off the float64 one by {difference:.1e}."]
    if beside_faiss:
        ran, reported = apart(faiss_iterations, path, case)
        lines += [
            f"faiss.Kmeans with its defaults on the same rows: {ran} of {case.iterations} iterations, reported sum of "
            f"squared distances {reported:,.0f}."
        ]
    path.unlink()
    print("\n".join(lines), flush=True)
    return [*lines, ""]


def main() -> None:
    """Run all cases and write the page."""
    parser = argparse.ArgumentParser(description="k-means at scale")
    parser.add_argument("--rows", type=int, default=40_000_000, help="rows of the first case")
    parser.add_argument("--folder", type=Path, help="folder for the rows, 6 GB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        few = Case("Many rows, few clusters", options.rows, 8, 16, 10)
        many = Case("Many clusters", 1_200_000, 8, 300_000, 1)
        wide = Case("More rows than memory", 5_000_000, 512, 64, 2)
        lines = [
            "# k-means at scale",
            "",
            f"Written by `python benchmarks/clustering_scale.py` on {describe_machine()},",
            f"faiss-cpu {metadata.version('faiss-cpu')}; {THREADS} threads. Times include the check of all rows and",
            "the choice of the start. Rows are mapped from a file: they are in the page cache, not in its memory.",
            "",
            *section(few, folder, beside_faiss=True, checked=True),
            *section(many, folder, beside_faiss=False, checked=False),
            *section(wide, folder, beside_faiss=False, checked=True),
            "## The process that drives the workers",
            "",
            "Two Ray actors share the rows; the driving process only waits and notes. Its anonymous memory grew by",
            " and by ".join(
                f"{apart(driver_growth, folder, n, DRIVER_DIM) / 1e6:.0f} MB for {n:,}" for n in DRIVER_ROWS
            )
            + f" rows x {DRIVER_DIM}.",
            "",
        ]
    PAGE.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
