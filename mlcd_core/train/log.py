"""What a run says about itself: one record every few steps, with the time and the classes watched in between."""

import time
from collections.abc import Iterable, Iterator

import torch

from mlcd_core.tower_estimate import head_flops
from mlcd_core.train.batches import Batch
from mlcd_core.train.flops import peak_flops, tower_flops
from mlcd_core.train.step import StepResult, Trainee
from mlcd_core.train.watches import DeadCenters, feature_watches, head_watches


class StepLog:
    """Watches the batches go by and makes the records; every rank keeps one, and makes the same calls.

    On CUDA devices whose peak is known a record has ``mfu``, on all of them ``device_memory_peak_bytes``.
    """

    def __init__(self, trainee: Trainee, *, first_step: int, steps_per_epoch: int) -> None:
        self._trainee = trainee
        self._first_step = first_step
        self._steps_per_epoch = steps_per_epoch
        self._logged, self._logged_at, self._waited = first_step, time.perf_counter(), 0.0
        head = trainee.head
        self._dead_centers = DeadCenters(head.num_classes, head.ranks, head.device)
        self._peak_flops = peak_flops(head.device, trainee.spec.precision)
        self._tower_flops = tower_flops(trainee.tower, trainee.spec.image_size) if self._peak_flops else 0

    def watched(self, batches: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
        """The batches with their global steps."""
        coming, step = iter(batches), self._first_step
        asked_at = time.perf_counter()
        for batch in coming:
            self._waited += time.perf_counter() - asked_at
            yield step, batch
            step += 1
            self._dead_centers.add(batch.positives_BL)
            if step % self._steps_per_epoch == 0:
                self._dead_centers.end_epoch(whole=step - self._steps_per_epoch >= self._first_step)
            asked_at = time.perf_counter()

    def record(self, result: StepResult, *, done: int, rate_share: float) -> dict[str, float]:
        """The record after ``done`` steps; times are those since the last record."""
        spec, head, stats = self._trainee.spec, self._trainee.head, result.output.stats
        seconds = time.perf_counter() - self._logged_at
        images_per_s = (done - self._logged) * spec.batch_size / seconds
        record = {
            "step": done,
            "epoch": done / self._steps_per_epoch,
            "learning_rate": spec.learning_rate * rate_share,
            "images_per_s": images_per_s,
            "data_wait_share": self._waited / seconds,
            "loss": float(result.output.loss),
            "gradient_norm": result.gradient_norm,
            "positive_cosine": stats.positive_cosine,
            "negative_cosine": stats.negative_cosine,
            "sampled_share": stats.sampled_share,
            **feature_watches(result.output.features_BD),
            **head_watches(head),
        }
        if self._dead_centers.count is not None:
            record["dead_centers"] = self._dead_centers.count
        if self._peak_flops:
            work = self._tower_flops + head_flops(stats.num_sampled, head.dim)
            record["mfu"] = images_per_s * work / (self._peak_flops * head.ranks.size)
        if head.device.type == "cuda":
            record["device_memory_peak_bytes"] = torch.cuda.max_memory_allocated(head.device)
        self._logged, self._logged_at, self._waited = done, time.perf_counter(), 0.0
        return record
