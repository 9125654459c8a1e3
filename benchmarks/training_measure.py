"""What the benchmarks of training share: peak memory, processes of their own, and where a step of the head goes."""

import ctypes
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlcd_core.train.head import ShardedHead

THREADS = 2
PHASES = ("draw and read", "forward", "backward", "optimizer")


class PeakMemory:
    """The most resident memory of this process beyond what it had on entry, kept by the kernel; Linux with glibc."""

    def __enter__(self) -> "PeakMemory":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that is free but kept would be used again uncounted
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts from here
        self._before = status_bytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.growth = status_bytes("VmHWM") - self._before


def status_bytes(name: str) -> int:
    """One of the sizes in /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a fresh process with THREADS threads."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=torch.set_num_threads, initargs=(THREADS,)) as pool:
        return pool.submit(function, *arguments).result()


def random_batch(num_rows: int, num_classes: int, dim: int, num_labels: int) -> tuple[Tensor, Tensor]:
    """Features that want a gradient, and ``num_labels`` different classes for each row."""
    generator = torch.Generator().manual_seed(0)
    features_BD = torch.randn(num_rows, dim, generator=generator).requires_grad_()
    first_B1 = torch.randint(num_classes, (num_rows, 1), generator=generator)
    offset_L = torch.randperm(num_classes, generator=generator)[:num_labels]
    return features_BD, (first_B1 + offset_L) % num_classes


def head_phases(head: ShardedHead, features_BD: Tensor, positives_BL: Tensor, steps: int) -> dict[str, float]:
    """Median seconds of the phases of a step, by the names of PHASES; one step before is not counted."""
    seconds: list[list[float]] = []
    for step in range(steps + 1):
        features_BD.grad = None
        marks = [time.perf_counter()]
        head.begin(positives_BL, step=step)
        marks.append(time.perf_counter())
        output = head.loss(features_BD)
        marks.append(time.perf_counter())
        output.loss.backward()
        marks.append(time.perf_counter())
        head.step(1e-3)
        marks.append(time.perf_counter())
        seconds.append([after - before for before, after in itertools.pairwise(marks)])
    medians = [statistics.median(column) for column in zip(*seconds[1:], strict=True)]
    return dict(zip(PHASES, medians, strict=True))
