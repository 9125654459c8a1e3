"""cluster: spherical k-means on long-lived Ray actors that own fixed blocks of the rows.

Each actor runs the same ``fit`` over its rows, joined by a process group. Sums are exact, so the centroids are the same
bits for any number of actors, and a run that was killed, or lost an actor, goes on from its newest link.
"""

from collections.abc import Mapping
from typing import Any, Literal

from mlcd_core.cluster_memory import available_bytes, check_memory, worker_bytes
from mlcd_core.embedded_points import block_ranges, embedding_dim
from mlcd_core.errors import ConfigError, TooFewRowsError
from mlcd_core.runtimes import ClusterRuntime
from mlcd_core.specs import ClusterSpec
from tasks.cluster_actors import run_workers
from tasks.cluster_links import links_before, seen_iterations
from tasks.cluster_worker import RankJob
from tasks.progress import forwarded_events
from tasks.run import Run
from tasks.work import Committed, Job, Made, StageWork, settings


def cluster_work(run: Run, committed: Committed) -> StageWork:
    """Describe the stage. Raises TooFewRowsError when the rows cannot carry the centroids."""
    spec, runtime = settings(run, "cluster")
    assert isinstance(spec, ClusterSpec)
    assert isinstance(runtime, ClusterRuntime)
    embed = committed["embed"]
    _check_rows(spec, usable=embed.usable, data=run.request.data)
    num_centroids = spec.num_centroids or max(1, embed.usable // spec.rows_per_centroid)

    def make(job: Job) -> Made:
        dim = embedding_dim(run.files, embed.parts)
        _check_memory(spec, runtime, embed.usable, num_centroids, dim)
        job.session.start()
        device, links = _device(runtime), work.links(job)
        with forwarded_events(job.report) as report:
            rank_job = RankJob(links, embed.parts, runtime, device, num_centroids, report)
            quality = run_workers(rank_job, world=runtime.workers, report=job.report)
        last = links.open().newest()
        assert last is not None, "k-means ended without a link"
        seen = seen_iterations(last)
        metrics = {**quality, **_seen_metrics(seen, quality["iterations"])}
        notes = {"workers": runtime.workers, "device": device, **_measured(seen, num_centroids, dim)}
        return Made([last], metrics=metrics, notes=notes)

    work = StageWork(
        spec=spec,
        inputs={"embed": embed.digest},
        make=make,
        last_number=links_before(spec) + spec.most_iterations * len(block_ranges(embed.parts)),
    )
    return work


def _check_rows(spec: ClusterSpec, *, usable: int, data: str) -> None:
    """Refuse before Ray is started, as ``fit`` would."""
    wanted = spec.num_centroids or 1
    if wanted > usable // 4:
        fix = f"set cluster.num_centroids <= {usable // 4:,} or add shards" if usable >= 4 else "add shards"
        raise TooFewRowsError(
            f"{wanted:,} centroids from {usable:,} usable rows of {data}; K may be at most rows/4: {fix}"
        )


def _check_memory(spec: ClusterSpec, runtime: ClusterRuntime, usable: int, num_centroids: int, dim: int) -> None:
    """Refuse a plan that does not fit in this machine; what fits in a GPU its worker checks."""
    if runtime.device != "cuda":
        plan = worker_bytes(
            rows=usable, num_centroids=num_centroids, dim=dim, workers=runtime.workers, recipe=spec.recipe
        )
        check_memory(plan, available_bytes())


def _device(runtime: ClusterRuntime) -> Literal["cpu", "cuda"]:
    """Where every worker computes: all on GPUs of their own, or all on the CPU."""
    import ray

    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if runtime.device == "cuda" and num_gpus < runtime.workers:
        raise ConfigError(
            f"cluster.device is cuda and Ray has {num_gpus} GPUs; expected one for each of {runtime.workers} workers: "
            "set cluster.workers lower, or cluster.device to auto or cpu"
        )
    return "cuda" if runtime.device != "cpu" and num_gpus >= runtime.workers else "cpu"


def _seen_metrics(seen: Mapping[int, Mapping[str, Any]], iterations: int) -> dict[str, Any]:
    """Per iteration, None where it is not known: a stop inside an iteration forgets each row's cluster before.

    ``recall`` is that of an iteration of the recipe fast, None for others.
    """
    rows = [seen.get(iteration, {}) for iteration in range(1, iterations + 1)]
    return {
        "changed_share": [row.get("changed_share") for row in rows],
        "certified_share": [1 - row["exhaustive_rows"] / row["used_rows"] if row else None for row in rows],
        "recall": [row.get("recall") for row in rows],
    }


def _measured(seen: Mapping[int, Mapping[str, Any]], num_centroids: int, dim: int) -> dict[str, Any]:
    """Time per iteration and speed: of this run's machines, so no metric. 2 * rows * K * D operations an iteration."""
    seconds = [row["seconds"] for row in seen.values()]
    rows_per_s = sum(row["rows"] for row in seen.values()) / max(sum(seconds), 1e-9)
    return {
        "iteration_seconds": seconds,
        "rows_per_s": rows_per_s,
        "flop_per_s": 2 * rows_per_s * num_centroids * dim,
    }
