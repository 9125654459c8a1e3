"""What a clustering worker keeps in memory, item by item, against the memory that is there. Pure arithmetic.

Centroids and their sums are held by every worker, so more workers do not make them smaller. Rows in mapped files count
nothing: the page cache keeps what fits and gives it back. No torch is imported here, so that a plan is quick.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlcd_core.errors import ConfigError
from mlcd_core.specs import RecipeName

PROCESS_BYTES = 300 * 10**6  # Python with torch and Arrow
SCORE_BYTES = 64 * 2**20  # scores of one tile, their errors and what is chosen among them
COARSE_BYTES: Mapping[str, int] = {"cpu": 1, "cuda": 2}  # int8, float16
TILE_ROWS = 16_384


@dataclass(frozen=True)
class MemoryPlan:
    """What one memory must hold, ``where`` it is: ``items`` name -> bytes, of which each centroid costs so many."""

    where: str
    items: Mapping[str, int]
    num_centroids: int
    bytes_per_centroid: int

    @property
    def total(self) -> int:
        """Bytes of all items."""
        return sum(self.items.values())


def worker_bytes(
    *,
    rows: int,
    num_centroids: int,
    dim: int,
    workers: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
    recipe: RecipeName = "exact",
    rows_mapped: bool = True,
) -> MemoryPlan:
    """Plan for ``workers`` that share one memory and have ``rows`` rows in all, the first worker among them.

    cpu: the machine's memory; rows that are not mapped (those of a root on S3) lie in it too. cuda: the memory of one
    device, rows resident; what the first worker reduces and saves is in the machine's memory then.
    """
    elements = num_centroids * dim
    on_host = device == "cpu"
    items = {
        "centroids": 4 * elements * workers,
        "coarse centroids": COARSE_BYTES[device] * elements * workers,
        # float16 while they are grouped, int8 by group twice while that is made
        "grouped centroids": 4 * elements * workers if recipe == "fast" else 0,
        # two for each centroid, while they are normalised in float64 (28.8 bytes an element were measured)
        "slices' centroids": 29 * elements * workers if recipe == "hierarchical" else 0,
        "sums": 8 * (elements + num_centroids) * workers,
        "next centroids": 4 * elements * workers if on_host else 0,
        # as Arrow bytes, twice while they are written
        "sums being saved": 2 * 8 * elements if on_host else 0,
        "tiles": (SCORE_BYTES + TILE_ROWS * dim * (2 + 4 + 8)) * workers,
        "labels": 4 * rows,
        "rows": 0 if on_host and rows_mapped else 2 * rows * dim,
        "processes": PROCESS_BYTES * workers if on_host else 0,
    }
    growing = [name for name in items if "centroids" in name or "sums" in name]
    return MemoryPlan(
        where="the machine's memory" if on_host else "the GPU's memory",
        items={name: size for name, size in items.items() if size},
        num_centroids=num_centroids,
        bytes_per_centroid=sum(items[name] for name in growing) // num_centroids,
    )


def check_memory(plan: MemoryPlan, available: int) -> None:
    """Raise ConfigError with every number and the fix when the plan needs more than ``available`` bytes."""
    if plan.total <= available:
        return
    fixed = plan.total - plan.bytes_per_centroid * plan.num_centroids
    most = max(0, available - fixed) // plan.bytes_per_centroid
    fewer = f"set cluster.num_centroids <= {most:,}, or " if most else ""
    listed = ", ".join(f"{name} {_gigabytes(size)}" for name, size in plan.items.items())
    raise ConfigError(
        f"clustering needs {_gigabytes(plan.total)} of {plan.where} ({listed}); expected at most the "
        f"{_gigabytes(available)} that are free: {fewer}take fewer workers with more threads each or a machine with "
        "more memory; every worker holds all centroids, so more workers do not help"
    )


def available_bytes(*, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may still take: the kernel's MemAvailable, or what its control groups leave, if less."""
    if not (proc / "meminfo").exists():  # no Linux: all memory that is built in
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = _number_after(proc / "meminfo", "MemAvailable:") * 1024
    return min([available, *_left_in_groups(proc, cgroups)])


def gpu_available_bytes(device: int) -> int:
    """Free bytes of a CUDA device."""
    import torch

    free: int = torch.cuda.mem_get_info(device)[0]
    return free


def _left_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What each control group above this process leaves of its limit; versions 1 and 2 name their files otherwise."""
    for line in (proc / "self" / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, usage, idle = cgroups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, usage = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            idle = "total_inactive_file"
        else:
            continue
        own = top / path.strip("/")
        for group in [own, *own.parents]:
            if group.is_relative_to(top) and (group / limit).exists() and (group / limit).read_text().strip() != "max":
                # pages of files count as used, and are given back when memory is short
                used = int((group / usage).read_text()) - _number_after(group / "memory.stat", idle)
                yield max(0, int((group / limit).read_text()) - used)


def _number_after(path: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.split()[0] == name)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
