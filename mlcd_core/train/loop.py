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
from torch import Tensor, nn

from mlcd_core.errors import ConfigError, TrainingError
from mlcd_core.events import Report, silent
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.specs import TrainSpec
from mlcd_core.store import Chain, Receipt
from mlcd_core.train import checkpoint
from mlcd_core.train.batches import Batch, BatchReader
from mlcd_core.train.checkpoint import Trainee
from mlcd_core.train.head import HeadOutput, ShardedHead
from mlcd_core.train.labels import TrainData
from mlcd_core.train.model import build_tower, check_tower_ranks
from mlcd_core.train.ranks import Ranks, device_of
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
    ranks, device = Ranks(group), device_of(runtime.device)
    with (
        _torch_threads(runtime.threads),
        BatchReader(data, spec, ranks, num_classes=num_classes, threads=runtime.threads) as reader,
    ):
        trainee = _new_trainee(spec, num_classes, group, device)
        tower, optimizer, head = trainee.tower, trainee.tower_optimizer, trainee.head
        gradient = _flat_gradient(tower)
        num_steps = spec.epochs * reader.lanes.steps_per_epoch
        link: Receipt | None = ranks.from_first(chain.newest() if ranks.rank == 0 else None)
        if link is not None:
            checkpoint.load(trainee, chain, link)
        first_step = link.number if link else 0
        curve: list[dict[str, float]] = list(link.state["curve"]) if link else []
        if ranks.rank == 0:
            report("train_start", _start_record(reader, first_step, num_steps))

        started, waited, num_since = time.perf_counter(), 0.0, 0
        batches = reader.batches(first_step, num_steps)
        for step in range(first_step, num_steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked

            share = schedule(step, num_steps, spec.warmup_share)
            gradient.zero_()
            output = head(tower(batch.pixels_BCHW.to(device)), batch.positives_BL, step=step)
            _check_finite(float(output.loss.detach()), "loss", step, batch)
            output.loss.backward()  # type: ignore[no-untyped-call]
            ranks.summed(gradient)
            norm = _clip(gradient, head, spec.clip_norm)
            _check_finite(norm, "gradient norm", step, batch)
            for settings in optimizer.param_groups:
                settings["lr"] = spec.learning_rate * share
            optimizer.step()
            head.step(spec.center_learning_rate * share)

            done, num_since = step + 1, num_since + 1
            if done % runtime.log_steps == 0 or done == num_steps:
                seconds = time.perf_counter() - started
                record = {
                    "step": done,
                    "epoch": done / reader.lanes.steps_per_epoch,
                    "learning_rate": spec.learning_rate * share,
                    "gradient_norm": norm,
                    "images_per_s": num_since * spec.batch_size / seconds,
                    "data_wait_share": waited / seconds,
                    **_loss_record(output),
                }
                curve.append(record)
                if ranks.rank == 0:
                    report("train_step", record)
                started, waited, num_since = time.perf_counter(), 0.0, 0
            if done % runtime.checkpoint_steps == 0 or done == num_steps:
                if done == num_steps:
                    head.optimizer.settle()
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


def _new_trainee(spec: TrainSpec, num_classes: int, group: dist.ProcessGroup | None, device: torch.device) -> Trainee:
    betas = (spec.beta1, spec.beta2)
    tower = build_tower(spec.tower, image_size=spec.image_size, seed=spec.seed).to(device)
    head = ShardedHead(
        spec,
        num_classes,
        tower.dim,
        group=group,
        seed=spec.seed,
        device=device,
        betas=betas,
        weight_decay=spec.center_weight_decay,
    )
    check_tower_ranks(tower, spec.tower, head.ranks.size)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=0.0, betas=betas, weight_decay=spec.weight_decay)
    return Trainee(spec, tower, optimizer, head)


def _flat_gradient(tower: nn.Module) -> Tensor:
    """One vector whose slices are the parameters' gradients: summed over ranks and clipped at once."""
    parameters = list(tower.parameters())
    flat = torch.zeros(sum(parameter.numel() for parameter in parameters), device=parameters[0].device)
    for parameter, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
    return flat


def _clip(gradient: Tensor, head: ShardedHead, clip_norm: float) -> float:
    """Scale tower and head gradients to a global norm of at most ``clip_norm``; returns the norm before."""
    squares = head.ranks.summed(head.gradient_TD.double().square().sum()) + gradient.double().square().sum()
    norm = math.sqrt(float(squares))
    if norm > clip_norm:
        gradient.mul_(clip_norm / norm)
        head.gradient_TD.mul_(clip_norm / norm)
    return norm


def _check_finite(value: float, name: str, step: int, batch: Batch) -> None:
    if not math.isfinite(value):
        keys = [key for key in batch.keys if key][:5]
        raise TrainingError(
            f"the {name} of step {step} is {value}, expected a finite number; this rank's batch begins with "
            f"{', '.join(keys)}; lower train.learning_rate or train.scale, and look at these images"
        )


def _loss_record(output: HeadOutput) -> dict[str, float]:
    stats = output.stats
    return {
        "loss": float(output.loss.detach()),
        "positive_cosine": stats.positive_cosine,
        "negative_cosine": stats.negative_cosine,
        **feature_watches(output.features_BD),
    }


def _start_record(reader: BatchReader, first_step: int, num_steps: int) -> dict[str, float]:
    return {
        "first_step": first_step,
        "num_steps": num_steps,
        "num_rows": reader.lanes.num_rows,
        "classes_without_rows": int((reader.rows_per_class() == 0).sum()),
    }


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
