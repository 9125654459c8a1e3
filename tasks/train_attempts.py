"""Keeps training alive: after lost workers it starts again from the newest link, on as many workers as now fit.

An attempt is one Ray Train run: its failure policy is switched off, since it would start the same number of workers
again and wait for ever for those that no longer fit. Checkpoints do not know the world size, so any number of workers
that divides the lanes can go on. An error of the loop itself is never tried again: it would come again.
"""

import itertools
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from mlcd_core.errors import ConfigError, MlcdError, WorkerLostError
from mlcd_core.events import Report
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.specs import TrainSpec
from tasks.cluster_actors import death_reason

if TYPE_CHECKING:
    from ray.train import TrainingFailedError

Device = Literal["cpu", "cuda"]


def run_attempts(
    worker: Callable[[dict[str, Any]], None],
    config: Mapping[str, Any],
    *,
    spec: TrainSpec,
    runtime: TrainRuntime,
    device: Device,
    num_blocks: int,
    report: Report,
) -> None:
    """Run ``worker(config)`` on the ranks until it returns.

    Reports ``train_attempt`` before each. Raises WorkerLostError after ``runtime.retries`` new starts, or when no
    number of workers fits.
    """
    import ray
    from ray.train import TrainingFailedError

    why = ""
    for attempt in itertools.count(1):
        slots = worker_slots(ray.cluster_resources(), device)
        world = fitting_world(spec, workers=runtime.workers, slots=slots, num_blocks=num_blocks)
        if world is None:
            raise WorkerLostError(
                f"training cannot go on with {slots} of {runtime.workers} {device} workers; expected a number of them "
                f"that divides train.lanes={spec.lanes}, whose rows train.accumulation={spec.accumulation} divides; "
                f"{'lost before: ' + why + '; ' if why else ''}"
                "saved links are kept: run again when there are machines"
            )
        report("train_attempt", {"attempt": attempt, "world_size": world, "device": device, "after": why})
        try:
            _fit(worker, config, world=world, device=device)
        except TrainingFailedError as error:
            reason = lost_reason(error)
            if reason is None:
                raise
            why = reason
            if attempt > runtime.retries:
                raise WorkerLostError(
                    f"training lost workers {attempt} times, the last time {reason}; expected at most "
                    f"train.retries={runtime.retries}; saved links are kept: mend that and run again"
                ) from error
        else:
            return


def pick_train_device(wanted: str, resources: Mapping[str, float]) -> Device:
    """Where all workers compute, by what the Ray cluster has; ``auto`` is cuda where there is a GPU."""
    num_gpus = int(resources.get("GPU", 0))
    if wanted == "cuda" and num_gpus == 0:
        raise ConfigError("train.device is cuda and Ray has no GPU; expected one or more: set train.device to auto")
    return "cuda" if wanted != "cpu" and num_gpus else "cpu"


def worker_slots(resources: Mapping[str, float], device: Device) -> int:
    """Workers that the cluster has room for: each has a CPU, and on cuda a GPU of its own."""
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    return min(cpus, gpus) if device == "cuda" else cpus


def fitting_world(spec: TrainSpec, *, workers: int, slots: int, num_blocks: int) -> int | None:
    """The largest world size of at most ``workers`` that there is room for and that training allows; None: not one.

    It must divide the lanes, leave rows that ``accumulation`` divides, and not exceed the blocks of classes.
    """
    allowed = (
        world
        for world in range(min(workers, slots, num_blocks), 0, -1)
        if spec.lanes % world == 0 and spec.batch_size // world % spec.accumulation == 0
    )
    return next(allowed, None)


def lost_reason(error: "TrainingFailedError") -> str | None:
    """How workers were lost, or None when the training itself failed.

    When a rank dies, what its peers raise is a consequence: a broken connection of the process group.
    """
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import PreemptionError

    if isinstance(error, PreemptionError):
        return str(error)
    if isinstance(error, ControllerError):
        failure = error.controller_failure
        is_start = isinstance(failure, WorkerGroupStartupFailedError | WorkerGroupStartupTimeoutError)
        return str(failure).splitlines()[0] if is_start else None
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    if any(isinstance(failure, MlcdError) for failure in failures.values()):
        return None
    deaths = {rank: reason for rank, failure in failures.items() if (reason := _death(failure)) is not None}
    if deaths:
        return "; ".join(f"rank {rank}: {reason}" for rank, reason in sorted(deaths.items()))
    if failures and all(_is_broken_connection(failure) for failure in failures.values()):
        return f"a connection between ranks broke: {str(next(iter(failures.values()))).splitlines()[0][:200]}"
    return None


def _death(failure: BaseException) -> str | None:
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

    if isinstance(failure, WorkerHealthCheckFailedError):
        failure = failure.health_check_failure
    if isinstance(failure, RayActorError | OutOfMemoryError):
        return death_reason(str(failure), killed_for_memory=False)
    return str(failure).splitlines()[0] if isinstance(failure, WorkerHealthCheckTimeoutError) else None


def _is_broken_connection(failure: BaseException) -> bool:
    from torch.distributed import DistError

    # gloo raises plain RuntimeErrors whose text begins with the place in its source
    return isinstance(failure, DistError) or (isinstance(failure, RuntimeError) and "gloo/" in str(failure))


def _fit(worker: Callable[[dict[str, Any]], None], config: Mapping[str, Any], *, world: int, device: Device) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    resources = {"CPU": 1, "GPU": 1} if device == "cuda" else {"CPU": 1}
    once = FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)
    with tempfile.TemporaryDirectory(prefix="mlcd-ray-train-") as scratch, _kept_sigint():
        trainer = DataParallelTrainer(
            worker,
            train_loop_config=dict(config),
            scaling_config=ScalingConfig(num_workers=world, use_gpu=device == "cuda", resources_per_worker=resources),
            run_config=RunConfig(name=uuid.uuid4().hex, storage_path=scratch, failure_config=once),
        )
        trainer.fit()


@contextmanager
def _kept_sigint() -> Iterator[None]:
    """Put SIGINT back as it was: Ray's handler outlives its run, and then ends the process with exit code 0."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
