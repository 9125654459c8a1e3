"""The training loop: a tower and a sharded head against the cluster labels, on any number of ranks.

Plain torch.distributed; it runs in one process, under gloo in tests and in Ray Train workers unchanged. The state is
the step: lanes, negatives, augmentation and schedule follow from it, so a run that was killed goes on from its newest
link and ends with the weights of an undisturbed one (bit for bit on CPU, at one world size and thread count).
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from mlcd_core.device import pick_device
from mlcd_core.errors import ConfigError
from mlcd_core.events import Report, silent
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.specs import TrainSpec
from mlcd_core.store import Chain, Receipt
from mlcd_core.train import checkpoint
from mlcd_core.train.batches import BatchReader
from mlcd_core.train.labels import TrainData
from mlcd_core.train.ranks import Ranks
from mlcd_core.train.step import StepResult, new_trainee, train_step
from mlcd_core.train.watches import feature_watches


def train(
    spec: TrainSpec,
    data: TrainData,
    *,
    num_classes: int,
    chain: Chain,
    group: dist.ProcessGroup | None = None,
    runtime: TrainRuntime | None = None,
    report: Report = silent,
) -> Receipt:
    """Train to the end from the chain's newest link, and return the last link; all ranks call it together.

    Links are appended every ``runtime.checkpoint_steps`` and at the end. Rank 0 reports ``train_start`` and, every
    ``runtime.log_steps``, ``train_step``; the same records stand in the link's ``state["curve"]``.
    Raises TrainingError for a loss that is not finite (with the batch's keys), ranks that do not fit the lanes, or a
    checkpoint of another run; DataError and LabelDataError for images and labels that do not fit.
    """
    runtime = runtime or TrainRuntime()
    _check_spec(spec)
    ranks, device = Ranks(group), torch.device(pick_device(runtime.device))
    with (
        _torch_threads(runtime.threads),
        BatchReader(data, spec, ranks, num_classes=num_classes, threads=runtime.threads) as reader,
    ):
        trainee = new_trainee(spec, num_classes=num_classes, device=device, group=group)
        link: Receipt | None = ranks.from_first(chain.newest() if ranks.rank == 0 else None)
        if link is not None:
            checkpoint.load(trainee, chain, link)
        first_step = link.number if link else 0
        num_steps = spec.epochs * reader.lanes.steps_per_epoch
        curve: list[dict[str, float]] = list(link.state["curve"]) if link else []
        if ranks.rank == 0:
            report("train_start", _start_record(reader, first_step, num_steps))

        batches = reader.batches(first_step, num_steps)
        logged, logged_at, waited = first_step, time.perf_counter(), 0.0
        for step in range(first_step, num_steps):
            asked_at = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked_at
            rate_share = schedule(step, num_steps, spec.warmup_share)
            result = train_step(trainee, batch, step=step, rate_share=rate_share)
            done = step + 1
            if done % runtime.log_steps == 0 or done == num_steps:
                seconds = time.perf_counter() - logged_at
                record = {
                    "step": done,
                    "epoch": done / reader.lanes.steps_per_epoch,
                    "learning_rate": spec.learning_rate * rate_share,
                    "images_per_s": (done - logged) * spec.batch_size / seconds,
                    "data_wait_share": waited / seconds,
                    **_step_record(result),
                }
                curve.append(record)
                if ranks.rank == 0:
                    report("train_step", record)
                logged, logged_at, waited = done, time.perf_counter(), 0.0
            if done % runtime.checkpoint_steps == 0 or done == num_steps:
                if done == num_steps:
                    trainee.head.optimizer.settle()
                epoch = done // reader.lanes.steps_per_epoch
                link = checkpoint.save(trainee, chain, step=done, epoch=epoch, curve=curve)
    assert link is not None, "a run has at least one step"
    return link


def schedule(step: int, num_steps: int, warmup_share: float) -> float:
    """Share of the peak learning rate: linear over the first steps, then a cosine that would reach 0 at the end."""
    num_warmup = round(warmup_share * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / max(1, num_steps - num_warmup)))


def _check_spec(spec: TrainSpec) -> None:
    if spec.loss == "softmax" and spec.num_positive != 1:
        raise ConfigError(
            f"train.loss=softmax with train.num_positive={spec.num_positive}; it takes the nearest cluster alone: "
            "set train.num_positive=1, or train.loss=mlcd"
        )


def _start_record(reader: BatchReader, first_step: int, num_steps: int) -> dict[str, float]:
    return {
        "first_step": first_step,
        "num_steps": num_steps,
        "num_rows": reader.lanes.num_rows,
        "classes_without_rows": int((reader.rows_per_class() == 0).sum()),
    }


def _step_record(result: StepResult) -> dict[str, float]:
    stats = result.output.stats
    return {
        "loss": float(result.output.loss.detach()),
        "gradient_norm": result.gradient_norm,
        "positive_cosine": stats.positive_cosine,
        "negative_cosine": stats.negative_cosine,
        **feature_watches(result.output.features_BD),
    }


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
