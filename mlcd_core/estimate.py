"""What clustering and labelling will cost, before anything runs: operations, bytes, hours. Pure arithmetic.

Assigning N rows of D dims to K centroids is 2*N*K*D operations, and everything else is small beside it: an iteration's
update reads the rows once, and the ranks exchange K*D sums. Labelling is one assignment more.

Hours are operations over 60 % of a device's peak in 16-bit matrix products with 32-bit sums, without sparsity, as the
vendors publish it (V100 SXM2 125, A100 312, H100 and H200 SXM 989 TFLOP/s). Two CPU cores with bf16 instructions reach
about 0.1 TFLOP/s. These are not measurements of this code.

N rows, K centroids, D dims, L labels per row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mlcd_core.cluster_memory import worker_bytes
from mlcd_core.specs import RecipeName
from mlcd_core.store.chain import KEPT_LINKS

# LAION-400M as the paper got it (arXiv 2407.17331, table 11)
PAPER_IMAGES = 389_737_314

PEAK_FLOPS: Mapping[str, float] = {"V100": 125e12, "A100": 312e12, "H100/H200": 989e12}
PEAK_FLOPS_FLOAT32: Mapping[str, float] = {"V100": 15.7e12, "A100": 19.5e12, "H100/H200": 67e12}
SHARE_OF_PEAK = 0.6
CPU_PAIR_FLOPS = 0.1e12
GPU_COUNTS = (1, 8, 80)

KEY_BYTES = 4 + 19  # offset and characters of a key made from shard and row


@dataclass(frozen=True)
class Device:
    """``count`` devices of one kind: seconds for an iteration, hours for all iterations and the labels."""

    kind: str
    count: int
    iteration_s: float
    total_h: float


@dataclass(frozen=True)
class WorkerMemory:
    """What one worker of ``workers`` holds, ``where``: without a GPU, or on its GPU."""

    where: str
    total_bytes: int
    items: Mapping[str, int]


@dataclass(frozen=True)
class Estimate:
    """The numbers of one clustering; ``*_flop`` are operations, ``*_bytes`` bytes."""

    num_rows: int
    dim: int
    num_centroids: int
    iterations: int
    num_labels: int
    iteration_flop: int
    labels_flop: int
    total_flop: int
    rows_bytes: int
    centroids_bytes: int
    sums_bytes: int
    embeddings_disk_bytes: int
    links_disk_bytes: int
    labels_disk_bytes: int
    workers: int
    worker_memory: tuple[WorkerMemory, ...]
    devices: tuple[Device, ...]


def estimate_clustering(
    *,
    num_rows: int,
    dim: int,
    num_centroids: int,
    iterations: int,
    num_labels: int,
    workers: int,
    recipe: RecipeName = "exact",
) -> Estimate:
    """Estimate k-means and its labels; each worker on a machine or GPU of its own.

    iterations: 0 when the centroids are pinned, so only labels are made. Operations and hours are those of exact
    iterations, memory that of the recipe.
    """
    iteration_flop = 2 * num_rows * num_centroids * dim
    total_flop = (iterations + 1) * iteration_flop
    centroids_bytes, sums_bytes = 4 * num_centroids * dim, 8 * num_centroids * dim
    rows_of_worker = -(-num_rows // workers)
    devices: tuple[Literal["cpu", "cuda"], ...] = ("cpu", "cuda")
    memory = [
        worker_bytes(rows=rows_of_worker, num_centroids=num_centroids, dim=dim, device=device, recipe=recipe)
        for device in devices
    ]
    return Estimate(
        num_rows=num_rows,
        dim=dim,
        num_centroids=num_centroids,
        iterations=iterations,
        num_labels=num_labels,
        iteration_flop=iteration_flop,
        labels_flop=iteration_flop,
        total_flop=total_flop,
        rows_bytes=2 * num_rows * dim,
        centroids_bytes=centroids_bytes,
        sums_bytes=sums_bytes,
        # row int64, key, status int8, float16 vector
        embeddings_disk_bytes=num_rows * (8 + KEY_BYTES + 1 + 2 * dim),
        # the newest links, each at most the centroids and the sums of an unfinished iteration
        links_disk_bytes=KEPT_LINKS * (centroids_bytes + sums_bytes) if iterations else 0,
        # row int64, key, int32 ids and float16 scores
        labels_disk_bytes=num_rows * (8 + KEY_BYTES + 6 * num_labels),
        workers=workers,
        worker_memory=tuple(WorkerMemory(plan.where, plan.total, plan.items) for plan in memory),
        devices=_devices(iteration_flop, total_flop),
    )


def _devices(iteration_flop: int, total_flop: int) -> tuple[Device, ...]:
    speeds = [(kind, n, n * SHARE_OF_PEAK * peak) for kind, peak in PEAK_FLOPS.items() for n in GPU_COUNTS]
    speeds.append(("CPU core", 2, CPU_PAIR_FLOPS))
    return tuple(
        Device(kind, count, iteration_flop / flops, total_flop / flops / 3600) for kind, count, flops in speeds
    )
