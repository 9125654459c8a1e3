"""cluster: spherical k-means on long-lived Ray actors that own fixed blocks of the rows.

Each actor runs the same ``fit`` over its rows, joined by a process group. Sums are exact, so the centroids are the same
bits for any number of actors, and a run that was killed, or lost an actor, goes on from its newest link.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from mlcd_core.cluster_memory import available_bytes, check_memory, worker_bytes
from mlcd_core.config import ClusterSettings
from mlcd_core.device import check_search
from mlcd_core.embedded_points import block_ranges, embedding_dim
from mlcd_core.errors import ConfigError
from mlcd_core.objects import is_s3
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
    num_centroids = spec.centroids_of(embed.usable, f"usable rows of {run.request.data}")

    num_blocks = len(block_ranges(embed.parts))
    # a worker without a block would hold all centroids for nothing
    world = min(runtime.workers, max(1, num_blocks))

    def make(job: Job) -> Made:
        dim = embedding_dim(run.files, embed.parts)
        check_search("cluster.search", runtime.search, runtime.device)
        if not job.session.address:  # the machines of a cluster are not this one
            _check_memory(run.config.cluster, run.files.uri(""), embed.usable, num_centroids, dim)
        job.session.start()
        device, links = _device(runtime), work.links(job)
        with forwarded_events(job.report) as report:
            rank_job = RankJob(links, embed.parts, runtime, device, num_centroids, report)
            quality = run_workers(rank_job, world=world, report=job.report)
        last = links.open().newest()
        assert last is not None, "k-means ended without a link"
        seen = seen_iterations(last)
        metrics = {**quality, **_seen_metrics(seen, quality["iterations"])}
        notes = {"workers": world, "device": device, **_measured(seen, num_centroids, dim)}
        return Made([last], metrics=metrics, notes=notes)

    work = StageWork(
        spec=spec,
        inputs={"embed": embed.digest},
        make=make,
        last_number=links_before(spec) + spec.most_iterations * num_blocks,
    )
    return work


def _check_memory(settings: ClusterSettings, root: str, usable: int, num_centroids: int, dim: int) -> None:
    """Refuse a plan that does not fit in this machine; what fits in a GPU its worker checks."""
    if settings.device != "cuda":
        plan = worker_bytes(
            rows=usable,
            num_centroids=num_centroids,
            dim=dim,
            workers=settings.workers,
            recipe=settings.recipe,
            rows_mapped=not is_s3(root),
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

    ``recall`` is that of an iteration of the recipe fast, which has no bound to settle rows by; None for others.
    """
    rows = [seen.get(iteration, {}) for iteration in range(1, iterations + 1)]
    return {
        "changed_share": [row.get("changed_share") for row in rows],
        "certified_share": [
            1 - row["exhaustive_rows"] / row["used_rows"] if row and row["recall"] is None else None for row in rows
        ],
        "recall": [row.get("recall") for row in rows],
    }


def _measured(seen: Mapping[int, Mapping[str, Any]], num_centroids: int, dim: int) -> dict[str, Any]:
    """Time per iteration and speed: of this run's machines, so no metric.

    An exact iteration has 2 * rows * K * D operations; others are left out of their rate.
    """
    exact = [row for row in seen.values() if row["recall"] is None]
    return {
        "dim": dim,
        "iteration_seconds": [row["seconds"] for row in seen.values()],
        "rows_per_s": _rows_per_s(seen.values()),
        "flop_per_s": 2 * _rows_per_s(exact) * num_centroids * dim,
    }


def _rows_per_s(rows: Iterable[Mapping[str, Any]]) -> float:
    rows = list(rows)
    seconds: float = sum(row["seconds"] for row in rows)
    return float(sum(row["rows"] for row in rows) / max(seconds, 1e-9))
