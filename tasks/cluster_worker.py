"""One rank of a clustering, as a long-lived actor: it owns every world-th block of the rows and keeps them.

When another rank dies, this one leaves the broken group with its rows in place and waits to be called again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from mlcd_core.cluster_memory import check_memory, gpu_available_bytes, worker_bytes
from mlcd_core.embedded_points import block_ranges, mapped_points
from mlcd_core.errors import WorkerLostError
from mlcd_core.events import Report, Value
from mlcd_core.runtimes import ClusterRuntime
from mlcd_core.specs import ClusterSpec
from mlcd_core.store import Part, Receipt, open_files
from tasks.cluster_links import LinkWriter, links_before, read_parts, read_state, read_sums
from tasks.rendezvous import address_of, connect_store, serve_store
from tasks.work import ChainAddress
from tasks.worker_log import LOG_EVENT, send_log

if TYPE_CHECKING:
    import torch

    from mlcd_core.kmeans.points import Points

# a rank waits for the others for a round and for the first rank's save; only one that hangs takes longer
GROUP_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class RankJob:
    """What all ranks of a clustering are told, small enough to send. ``device`` is where each computes."""

    links: ChainAddress
    parts: tuple[Part, ...]
    runtime: ClusterRuntime
    device: Literal["cpu", "cuda"]
    num_centroids: int
    report: Report


@dataclass(frozen=True)
class Left:
    """A rank's answer when it left a group that lost another rank."""

    reason: str


class ClusterWorker:
    """Rank ``rank`` of ``world``. Attempts are numbered; each is a group of its own."""

    def __init__(self, job: RankJob, rank: int, world: int) -> None:
        self._job = job
        self._rank = rank
        self._world = world
        self._points: Points | None = None
        self._left_attempt = 0
        send_log(f"rank {rank}", lambda line: job.report(LOG_EVENT, line))

    def load(self) -> int:
        """Map this rank's rows, once; returns how many."""
        if self._points is None:
            job = self._job
            points = mapped_points(open_files(job.links.root), job.parts, rank=self._rank, world=self._world)
            self._points = points if job.device == "cpu" else self._on_gpu(points, self._device())
        return self._points.num_rows

    def open_store(self) -> tuple[str, int]:
        """Open a rendezvous on this node; returns its host and port."""
        self._store = serve_store()
        return address_of(self._store)

    def fit(self, attempt: int, address: tuple[str, int], newest: Receipt | None) -> dict[str, Any] | Left:
        """Run k-means with the other ranks from link ``newest`` on; rank 0 commits the links.

        Returns the quality record (on rank 0, else nothing), or Left when another rank was lost.
        """
        import torch
        import torch.distributed as dist

        torch.set_num_threads(self._job.runtime.threads)
        self._device()
        try:
            self._join_group(address)
            return self._fit(attempt, newest)
        except WorkerLostError as error:
            answer = Left(str(error))
        finally:
            # closes the sockets, so that a rank that still waits for this one leaves too
            if dist.is_initialized():
                dist.destroy_process_group()
        return answer

    def leave(self, attempt: int) -> None:
        """Called beside ``fit``: leave the group of this attempt before the next block of rows."""
        import torch.distributed as dist

        self._left_attempt = attempt
        if self._job.device == "cuda" and dist.is_initialized():
            assert dist.group.WORLD is not None
            dist.group.WORLD.abort()  # nccl waits for a dead rank as long as the timeout says, gloo does not

    def _join_group(self, address: tuple[str, int]) -> None:
        import torch.distributed as dist

        backend = "gloo" if self._job.device == "cpu" else "cpu:gloo,cuda:nccl"
        timeout = timedelta(seconds=GROUP_TIMEOUT_S + 2 * self._job.runtime.save_seconds)
        try:
            store = self._store if self._rank == 0 else connect_store(address)
            dist.init_process_group(backend, store=store, rank=self._rank, world_size=self._world, timeout=timeout)
        except RuntimeError as error:
            raise WorkerLostError(f"the k-means workers could not form a group ({error}); run again") from error

    def _fit(self, attempt: int, newest: Receipt | None) -> dict[str, Any]:
        import torch.distributed as dist

        from mlcd_core.kmeans import Saving, fit
        from mlcd_core.kmeans.identical import count_identical_rows
        from mlcd_core.kmeans.quality import size_quality
        from mlcd_core.kmeans.ranks import Ranks

        job, spec, is_first = self._job, self._job.links.spec, self._rank == 0
        assert isinstance(spec, ClusterSpec)
        assert self._points is not None, "load comes first"
        chain = job.links.open()
        num_blocks = len(block_ranges(job.parts))
        writer = LinkWriter(
            chain, newest, num_blocks=num_blocks, save_every=job.runtime.save_every, num_before=links_before(spec)
        )

        def report(event: str, values: Mapping[str, Value]) -> None:
            writer.see(event, values)
            if is_first:
                job.report(event, values)

        def before_block() -> None:
            if self._left_attempt >= attempt:
                raise WorkerLostError("told to leave: another k-means worker is lost")

        saving = Saving(
            read_partial=lambda: read_sums(chain, newest),
            parts=read_parts(chain, newest),
            on_partial=writer.save_partial,
            on_parts=writer.save_parts if is_first else None,
            save_seconds=job.runtime.save_seconds,
            before_block=before_block,
        )
        clustering = fit(
            self._points,
            spec,
            group=dist.group.WORLD,
            resume=read_state(chain, newest),
            saving=saving,
            on_iteration=writer.end_iteration if is_first else None,
            report=report,
            search=job.runtime.search,
            device=self._device(),
        )
        if is_first:
            writer.save_iteration(clustering.state)
        identical = count_identical_rows(self._points, Ranks(dist.group.WORLD))
        if not is_first:
            return {}
        return {
            "iterations": clustering.iterations,
            "converged": clustering.converged,
            "objective": list(clustering.objective),
            "splits": list(clustering.splits),
            **size_quality(clustering.counts_K),
            "identical_rows": identical.identical,
            "identical_of": identical.sampled,
        }

    def _device(self) -> "torch.device":
        """Where this worker computes; a GPU is made the calling thread's own."""
        import ray
        import torch

        if self._job.device == "cpu":
            return torch.device("cpu")
        device = torch.device("cuda", int(ray.get_gpu_ids()[0]))
        torch.cuda.set_device(device)
        return device

    def _on_gpu(self, points: "Points", device: "torch.device") -> "Points":
        """The rows on this worker's GPU, as many as fit beside the rest. Raises ConfigError when that does not."""
        spec = self._job.links.spec
        assert isinstance(spec, ClusterSpec)
        plan = worker_bytes(
            rows=points.num_rows,
            num_centroids=self._job.num_centroids,
            dim=points.dim,
            device="cuda",
            recipe=spec.recipe,
        )
        rest = replace(plan, items={name: size for name, size in plan.items.items() if name != "rows"})
        free = gpu_available_bytes(device.index)
        check_memory(rest, free)
        return points.to(device, budget_bytes=free - rest.total)
