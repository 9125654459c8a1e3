"""Keeps the workers of a clustering alive: one that dies is started again while the others keep their rows.

An attempt is a process group of all ranks, from the newest link on. When a rank dies the others leave the group, a new
worker takes its place, and the next attempt begins. Only deaths without a new link in between end the stage.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlcd_core.errors import WorkerLostError
from mlcd_core.events import Report
from mlcd_core.store import Receipt
from tasks.cluster_worker import ClusterWorker, Left, RankJob

MOST_DEATHS = 3
# a healthy rank leaves before its next block of rows
LEAVE_S = 120.0
MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")


def run_workers(job: RankJob, *, world: int, report: Report) -> dict[str, Any]:
    """Cluster on ``world`` actors and return the first rank's quality record.

    Raises WorkerLostError when workers died three times without a new link.
    """
    workers = _Workers(job, world)
    deaths, last_number = 0, -2
    try:
        while True:
            newest = job.links.open().newest()
            number = newest.number if newest else -1
            if number > last_number:
                deaths, last_number = 0, number
            step = workers.attempt(newest)
            if not step.is_broken:
                quality: dict[str, Any] = step.answers[0]
                return quality
            deaths += 1
            if deaths == MOST_DEATHS:
                raise WorkerLostError(
                    f"k-means workers died {deaths} times without a new link in between; the last time {step.why}; "
                    "saved links are kept: mend that and run again"
                )
            for rank in step.lost:
                workers.revive(rank)
            report("cluster.revival", {"ranks": ", ".join(map(str, step.lost)), "deaths": deaths, "why": step.why})
    finally:
        workers.kill()


@dataclass(frozen=True)
class _Step:
    """What the ranks answered, and why the others did not."""

    answers: Mapping[int, Any]
    lost: Mapping[int, str]

    @property
    def is_broken(self) -> bool:
        """Whether the attempt is over without a result."""
        return bool(self.lost) or any(isinstance(answer, Left) for answer in self.answers.values())

    @property
    def why(self) -> str:
        """One line: who was lost and why, or what those that left say."""
        lost = [f"rank {rank}: {reason}" for rank, reason in self.lost.items()]
        left = [answer.reason for answer in self.answers.values() if isinstance(answer, Left)]
        return "; ".join(lost or left[:1])


class _Workers:
    """The actors of all ranks."""

    def __init__(self, job: RankJob, world: int) -> None:
        import ray

        options: dict[str, Any] = {"num_cpus": 1, "max_concurrency": 2}  # fit, and leave beside it
        if job.device == "cuda":
            # with one visible device per actor NCCL crawls or hangs on NVSwitch (ray#61073)
            unmasked = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
            options |= {"num_gpus": 1, "runtime_env": unmasked}
        actor = ray.remote(**options)(ClusterWorker)
        self._start: Callable[[int], Any] = lambda rank: actor.remote(job, rank, world)
        self._actors = [self._start(rank) for rank in range(world)]
        self._attempt = 0

    def attempt(self, newest: Receipt | None) -> _Step:
        """Load what is not loaded, form a group, and run k-means from link ``newest`` on."""
        self._attempt += 1
        loaded = self._call({rank: actor.load.remote() for rank, actor in enumerate(self._actors)})
        if loaded.is_broken:
            return loaded
        opened = self._call({0: self._actors[0].open_store.remote()})
        if opened.is_broken:
            return opened
        address = opened.answers[0]
        return self._call(
            {rank: actor.fit.remote(self._attempt, address, newest) for rank, actor in enumerate(self._actors)}
        )

    def revive(self, rank: int) -> None:
        """Put a new actor in the place of a lost one."""
        self._kill(rank)
        self._actors[rank] = self._start(rank)

    def kill(self) -> None:
        """End all of them."""
        for rank in range(len(self._actors)):
            self._kill(rank)

    def _kill(self, rank: int) -> None:
        import ray

        ray.kill(self._actors[rank])

    def _call(self, calls: Mapping[int, Any]) -> _Step:
        """Wait for all answers; once a rank is lost the others are told to leave. An error of a rank is raised."""
        import ray
        from ray.exceptions import OutOfMemoryError, RayActorError

        waiting = {call: rank for rank, call in calls.items()}
        answers: dict[int, Any] = {}
        lost: dict[int, str] = {}
        memory_kills = _memory_kills()
        while waiting:
            is_broken = _Step(answers, lost).is_broken
            done, _ = ray.wait(list(waiting), timeout=LEAVE_S if is_broken else None)
            if not done:
                lost |= dict.fromkeys(waiting.values(), f"it did not leave its broken group in {LEAVE_S:.0f} s")
                break
            rank = waiting.pop(done[0])
            try:
                answers[rank] = ray.get(done[0])
            except (RayActorError, OutOfMemoryError) as error:
                lost[rank] = death_reason(str(error), killed_for_memory=_memory_kills() > memory_kills)
            if not is_broken and _Step(answers, lost).is_broken:
                for other in waiting.values():
                    self._actors[other].leave.remote(self._attempt)
        return _Step(answers, lost)


def death_reason(ray_text: str, *, killed_for_memory: bool) -> str:
    """Why an actor died, in a line; says so when it was for memory."""
    if killed_for_memory or "OUT_OF_MEMORY" in ray_text or "running low on memory" in ray_text:
        return (
            "it was killed because memory ran out (every worker holds all centroids: set cluster.num_centroids or "
            "cluster.workers lower, or take a machine with more memory)"
        )
    # what follows is Ray's list of things that kill processes in general
    told = ray_text.split("There are some potential root causes", maxsplit=1)[0]
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return next((line for line in lines if "exit" in line), lines[0])[:300]


def _memory_kills() -> int:
    """Processes that the kernel has killed in this machine's control group because memory ran out."""
    if not MEMORY_EVENTS.exists():
        return 0
    counts = dict(line.split() for line in MEMORY_EVENTS.read_text().splitlines())
    return int(counts.get("oom_kill", 0))
