"""cluster: spherical k-means on long-lived Ray actors that own fixed parts of the rows; one link per iteration.

Each actor runs the same ``fit`` over its rows, joined by a gloo group. Sums are exact, so the centroids are the same
bits for any number of actors, and a run that was killed goes on from its newest link, with any number of them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlcd_core.errors import TooFewRowsError
from mlcd_core.events import Report, silent
from mlcd_core.runtimes import ClusterRuntime
from mlcd_core.specs import ClusterSpec
from mlcd_core.store import LocalFiles, Part, read_part
from tasks.progress import forwarded_events
from tasks.run import Run
from tasks.work import ChainAddress, Committed, Job, Made, StageWork, settings

if TYPE_CHECKING:
    from mlcd_core.kmeans import ArrayPoints


def cluster_work(run: Run, committed: Committed) -> StageWork:
    """Describe the stage. Raises TooFewRowsError when the rows cannot carry the centroids."""
    spec, runtime = settings(run, "cluster")
    assert isinstance(spec, ClusterSpec)
    assert isinstance(runtime, ClusterRuntime)
    embed = committed["embed"]
    _check_rows(spec, usable=embed.usable, data=run.request.data)

    def make(job: Job) -> Made:
        job.session.start()
        links = work.links(job)
        summary = _run_actors(links, embed.parts, runtime, job.report)
        last = links.open().newest()
        assert last is not None, "k-means ended without a link"
        return Made([last], metrics=summary)

    work = StageWork(spec=spec, inputs={"embed": embed.digest}, make=make, last_number=spec.iterations)
    return work


def _check_rows(spec: ClusterSpec, *, usable: int, data: str) -> None:
    """Refuse before Ray is started, as ``fit`` would."""
    wanted = spec.num_centroids or 1
    if wanted > usable // 4:
        fix = f"set cluster.num_centroids <= {usable // 4:,} or add shards" if usable >= 4 else "add shards"
        raise TooFewRowsError(
            f"{wanted:,} centroids from {usable:,} usable rows of {data}; K may be at most rows/4: {fix}"
        )


def _run_actors(links: ChainAddress, parts: Sequence[Part], runtime: ClusterRuntime, report: Report) -> dict[str, Any]:
    import ray

    actor = ray.remote(num_cpus=1)(ClusterWorker)
    world = runtime.workers
    with forwarded_events(report) as remote_report:
        workers = [actor.remote(links, parts, rank, world, runtime, remote_report) for rank in range(world)]
        try:
            address = ray.get(workers[0].open_store.remote())
            quality: dict[str, Any] = ray.get([worker.fit.remote(address) for worker in workers])[0]
        finally:
            for worker in workers:
                ray.kill(worker)
    return quality


class ClusterWorker:
    """One rank: it owns every ``world``-th embedding part, and joins the group of all ranks."""

    def __init__(
        self,
        links: ChainAddress,
        parts: Sequence[Part],
        rank: int,
        world: int,
        runtime: ClusterRuntime,
        report: Report,
    ) -> None:
        self._links = links
        self._parts = parts
        self._rank = rank
        self._world = world
        self._runtime = runtime
        self._report = report

    def open_store(self) -> tuple[str, int]:
        """Open the group's rendezvous on this rank; returns its host and port."""
        import torch.distributed as dist

        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        return "127.0.0.1", self._store.port

    def fit(self, address: tuple[str, int]) -> dict[str, Any]:
        """Run k-means with the other ranks; rank 0 commits the links. Returns the quality record."""
        import torch
        import torch.distributed as dist

        from mlcd_core.kmeans import CentroidState, fit

        torch.set_num_threads(self._runtime.threads)
        store = self._store if self._rank == 0 else dist.TCPStore(*address, is_master=False)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=self._rank, world_size=self._world)
        chain = self._links.open()
        newest = chain.newest()
        saved = newest.number if newest else -1
        spec = self._links.spec
        assert isinstance(spec, ClusterSpec)

        def save(state: CentroidState) -> None:
            nonlocal saved
            if self._rank == 0 and state.iteration > saved:
                part = chain.put("centroids", ".arrow", state.to_arrow_bytes(), rows=len(state.centroids_KD))
                chain.append(state.iteration, [part], {})
                saved = state.iteration

        def on_iteration(state: CentroidState) -> None:
            if state.iteration % self._runtime.save_every == 0:
                save(state)

        clustering = fit(
            self._own_points(),
            spec,
            group=dist.group.WORLD,
            resume=CentroidState.from_arrow_bytes(chain.read(newest.parts[0])) if newest else None,
            on_iteration=on_iteration,
            report=self._report if self._rank == 0 else silent,
            tile_rows=self._runtime.tile_rows,
        )
        save(clustering.state)
        dist.destroy_process_group()
        return {
            "iterations": clustering.iterations,
            "converged": clustering.converged,
            "objective": list(clustering.objective),
            "splits": list(clustering.splits),
            "counts": clustering.counts_K.tolist(),
        }

    def _own_points(self) -> "ArrayPoints":
        """This rank's usable rows under their global ids; a rank without parts has none, of the same width."""
        import torch

        from mlcd_core.images.embed_shard import read_ipc
        from mlcd_core.kmeans import ArrayPoints
        from mlcd_core.labels import usable_points

        files = LocalFiles(self._links.root)
        own = self._parts[self._rank :: self._world]
        tables = [(read_ipc(read_part(files, part)), part.offset) for part in own]
        if not tables:
            tables = [(read_ipc(read_part(files, self._parts[0])).slice(0, 0), 0)]
        points = [usable_points(table, offset=offset) for table, offset in tables]
        return ArrayPoints.from_unit_rows(
            torch.cat([part.points_ND for part in points]), row_ids=torch.cat([part.row_ids_N for part in points])
        )
