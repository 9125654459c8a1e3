"""Run one function on several gloo ranks, each a process of its own, and collect what they return."""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

RankFunction = Callable[[dist.ProcessGroup], Any]


class RankFailedError(Exception):
    """A rank raised; the text holds its number and traceback."""


def run_ranks(fn: RankFunction, world_size: int, tmp_path: Path, timeout_s: float = 120) -> list[Any]:
    """Call ``fn(group)`` on ranks 0 .. world_size - 1 and return their results in rank order.

    ``fn`` is picklable: a module-level function or a partial of one. Results are tensors, numbers, strings and
    containers of them. Raises RankFailedError with the first traceback, TimeoutError after ``timeout_s``; no process is
    left behind.
    """
    folder = tmp_path / f"ranks-{time.monotonic_ns()}"
    folder.mkdir()
    # importing torch takes four seconds of CPU: one server does it once, and ranks are forked from it
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed"])
    ranks = [
        context.Process(target=_run_rank, args=(fn, rank, world_size, folder, timeout_s)) for rank in range(world_size)
    ]
    try:
        for rank in ranks:
            rank.start()
        _wait(ranks, folder, deadline=time.monotonic() + timeout_s)
    finally:
        for rank in ranks:
            if rank.pid is not None:
                rank.kill()
                rank.join()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _wait(ranks: list[Any], folder: Path, deadline: float) -> None:
    while running := [number for number, rank in enumerate(ranks) if rank.is_alive()]:
        if time.monotonic() >= deadline:
            raise TimeoutError(f"ranks {running} did not finish in time")
        wait([ranks[number].sentinel for number in running], timeout=max(0, deadline - time.monotonic()))
        if any(rank.exitcode for rank in ranks):
            break
    failures = sorted(folder.glob("*.traceback"), key=lambda path: path.stat().st_mtime_ns)
    if failures:
        raise RankFailedError(f"rank {failures[0].stem}\n{failures[0].read_text()}")
    for number, rank in enumerate(ranks):
        if rank.exitcode:
            raise RankFailedError(f"rank {number} ended with exit code {rank.exitcode}")


def _run_rank(fn: RankFunction, rank: int, world_size: int, folder: Path, timeout_s: float) -> None:
    torch.set_num_threads(1)
    try:
        store = dist.FileStore(str(folder / "rendezvous"), world_size)
        timeout = timedelta(seconds=timeout_s)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
        torch.save(fn(dist.group.WORLD), folder / f"{rank}.pt")
        dist.destroy_process_group()
    except BaseException:
        unfinished = folder / f"{rank}.unfinished"
        unfinished.write_text(traceback.format_exc())
        unfinished.rename(folder / f"{rank}.traceback")
        os._exit(1)
