"""The training loop: a tower and a sharded head against the cluster labels, on any number of ranks.

Plain torch.distributed; it runs in one process, under gloo in tests and in Ray Train workers unchanged. The state is
the step: lanes, negatives, augmentation and schedule follow from it, so a run that was killed goes on from its newest
link and ends with the weights of an undisturbed one (bit for bit on CPU, at one world size and thread count).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist

from mlcd_core.device import pick_device
from mlcd_core.errors import ConfigError, TrainingStopped
from mlcd_core.events import Report, silent
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.specs import TrainSpec
from mlcd_core.store import Chain, Receipt
from mlcd_core.train import checkpoint
from mlcd_core.train.batches import BatchReader
from mlcd_core.train.faults import with_batch_saved
from mlcd_core.train.head import check_head_spec
from mlcd_core.train.labels import TrainData
from mlcd_core.train.log import StepLog
from mlcd_core.train.ranks import Ranks
from mlcd_core.train.schedule import rate_share
from mlcd_core.train.start import Start, begin_from
from mlcd_core.train.step import NotFiniteError, new_trainee, train_step


def never() -> bool:
    """Nobody asks the run to end."""
    return False


def train(
    spec: TrainSpec,
    data: TrainData,
    *,
    num_classes: int,
    chain: Chain,
    group: dist.ProcessGroup | None = None,
    runtime: TrainRuntime | None = None,
    report: Report = silent,
    centroids_KD: np.ndarray | None = None,
    start: Start | None = None,
    stop: Callable[[], bool] = never,
) -> Receipt:
    """Train to the end from the chain's newest link, and return the last link; all ranks call it together.

    centroids_KD: where centers start unless ``spec.center_init`` is normal. start: the run that ``spec.start_from``
    names. stop: asked on rank 0 after each step.
    Links are appended every ``runtime.checkpoint_steps`` and at the end. Rank 0 reports ``train_start`` and, every
    ``runtime.log_steps``, ``train_step``; the same records stand in the links (``whole_curve``).
    Raises TrainingStopped, with its state saved, once ``stop`` says so; ConfigError for settings that exclude each
    other; TrainingError for a loss that is not finite (its batch is saved), ranks that do not fit the lanes, or a
    checkpoint of another run; DataError and LabelDataError for images and labels that do not fit.
    """
    runtime = runtime or TrainRuntime()
    check_head_spec(spec, num_positive=spec.num_positive)
    _check_start(spec, start)
    ranks, device = Ranks(group), torch.device(pick_device(runtime.device))
    with (
        _torch_settings(runtime.threads, tf32=device.type == "cuda" and spec.precision == "bfloat16"),
        BatchReader(data, spec, ranks, num_classes=num_classes, threads=runtime.threads) as reader,
    ):
        trainee = new_trainee(
            spec,
            num_classes=num_classes,
            device=device,
            group=group,
            centroids_KD=centroids_KD,
            recompute_activations=runtime.checkpoint_activations,
            sharded=runtime.shard_tower,
        )
        first: dict[str, float] = {}
        link: Receipt | None = ranks.from_first(chain.newest() if ranks.rank == 0 else None)
        if link is not None:
            checkpoint.load(trainee, chain, link)
        elif start is not None:
            first["centers_from_start"] = begin_from(trainee, start)
        first_step = link.number if link else 0
        steps_per_epoch = reader.lanes.steps_per_epoch
        num_steps = spec.epochs * steps_per_epoch
        records: list[dict[str, float]] = []  # since the last link
        if ranks.rank == 0:
            report("train_start", _start_record(reader, first_step, num_steps) | first)

        log = StepLog(trainee, first_step=first_step, steps_per_epoch=steps_per_epoch)
        for step, batch in log.watched(reader.batches(first_step, num_steps)):
            share, done = rate_share(spec, step, num_steps), step + 1
            try:
                result = train_step(trainee, batch, step=step, rate_share=share)
            except NotFiniteError as fault:
                raise with_batch_saved(fault, batch, step=step, chain=chain, ranks=ranks) from fault
            if done % runtime.log_steps == 0 or done == num_steps:
                records.append(log.record(result, done=done, rate_share=share))
                if ranks.rank == 0:
                    report("train_step", records[-1])
            stopped = done < num_steps and ranks.told_by_first(stop, device)
            if done % runtime.checkpoint_steps == 0 or done == num_steps or stopped:
                if done == num_steps:
                    trainee.head.optimizer.settle()
                link = checkpoint.save(trainee, chain, step=done, epoch=done // steps_per_epoch, records=records)
                records = []
            if stopped:
                raise TrainingStopped(
                    f"training was asked to stop and saved step {done} of {num_steps}; run again to go on from there"
                )
    assert link is not None, "a run has at least one step"
    return link


def _check_start(spec: TrainSpec, start: Start | None) -> None:
    if bool(spec.start_from) != (start is not None):
        raise ConfigError(
            f"train.start_from={spec.start_from!r} and {'a' if start else 'no'} checkpoint to start from; expected "
            "both or none: name the digest of a committed train manifest, or leave it empty"
        )


def _start_record(reader: BatchReader, first_step: int, num_steps: int) -> dict[str, float]:
    return {
        "first_step": first_step,
        "num_steps": num_steps,
        "num_rows": reader.lanes.num_rows,
        "classes_without_rows": int((reader.rows_per_class == 0).sum()),
    }


@contextmanager
def _torch_settings(threads: int, *, tf32: bool) -> Iterator[None]:
    """Threads, and the precision of float32 products, while training runs."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
