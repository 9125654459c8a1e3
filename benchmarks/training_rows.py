"""Costs that grow with the number of classes: the row optimizer beside PyTorch's, and a million classes on a laptop.

C classes, D dims, T touched rows.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from partial_fc import KSlotPartialFC
from torch import Tensor, nn
from training_measure import head_phases, random_batch, status_bytes

from mlcd_core.specs import TrainSpec
from mlcd_core.train.batches import Batch
from mlcd_core.train.head import AdamWSettings, HeadSpec, ShardedHead
from mlcd_core.train.head.row_optimizer import RowAdamW
from mlcd_core.train.step import new_trainee, train_step

LR = 1e-3
BETAS = (0.9, 0.98)
NUM_LABELS = 8
LAPTOP_HEAD = HeadSpec(negative_ratio=0.01)

LAZY = "mlcd, lazy AdamW"
DENSE = "torch.optim.AdamW, fused"
MOVE_ALONE = ", the move alone"

Update = Callable[[Tensor, Tensor], dict[str, float]]  # seconds, by what was timed


@dataclass(frozen=True)
class LaptopRun:
    """Median seconds of a step and of its phases, the most memory of the process, and the bytes beside the weights."""

    seconds: float
    phases: dict[str, float]
    peak_bytes: int
    optimizer_bytes: int


def race_row_optimizers(num_classes: int, dim: int, touched_share: float, steps: int) -> dict[str, list[float]]:
    """Seconds of each update of the same rows, the optimizers taking turns; one round before is not counted."""
    updates = [lazy_update(num_classes, dim), dense_update(num_classes, dim), sparse_update(num_classes, dim)]
    generator = torch.Generator().manual_seed(0)
    num_touched = round(touched_share * num_classes)
    seconds: dict[str, list[float]] = {}
    for _ in range(steps + 1):
        rows_T = torch.randperm(num_classes, generator=generator)[:num_touched].sort().values
        gradient_TD = torch.randn(num_touched, dim, generator=generator)
        for update in updates:
            for name, taken in update(rows_T, gradient_TD).items():
                seconds.setdefault(name, []).append(taken)
    return {name: values[1:] for name, values in seconds.items()}


def lazy_update(num_classes: int, dim: int) -> Update:
    """Read the touched rows, then move them."""
    optimizer = RowAdamW(torch.zeros(num_classes, dim), AdamWSettings("lazy", BETAS))

    def update(rows_T: Tensor, gradient_TD: Tensor) -> dict[str, float]:
        started = time.perf_counter()
        optimizer.read(rows_T)
        read = time.perf_counter()
        optimizer.step(rows_T, gradient_TD, LR)
        ended = time.perf_counter()
        return {LAZY: ended - started, LAZY + MOVE_ALONE: ended - read}

    return update


def dense_update(num_classes: int, dim: int) -> Update:
    """Make the gradient, zero but for the touched rows as that of ``weight[index]`` is, then move all rows."""
    weight_CD = nn.Parameter(torch.zeros(num_classes, dim))
    weight_CD.grad = torch.zeros_like(weight_CD)
    optimizer = torch.optim.AdamW([weight_CD], lr=LR, betas=BETAS, weight_decay=0.0, fused=True)

    def update(rows_T: Tensor, gradient_TD: Tensor) -> dict[str, float]:
        assert weight_CD.grad is not None
        started = time.perf_counter()
        weight_CD.grad.zero_()[rows_T] = gradient_TD
        made = time.perf_counter()
        optimizer.step()
        ended = time.perf_counter()
        return {DENSE: ended - started, DENSE + MOVE_ALONE: ended - made}

    return update


def sparse_update(num_classes: int, dim: int) -> Update:
    """Move the touched rows by SparseAdam: one count of steps for all rows, and no weight decay."""
    weight_CD = nn.Parameter(torch.zeros(num_classes, dim))
    optimizer = torch.optim.SparseAdam([weight_CD], lr=LR, betas=BETAS)

    def update(rows_T: Tensor, gradient_TD: Tensor) -> dict[str, float]:
        weight_CD.grad = torch.sparse_coo_tensor(
            rows_T[None], gradient_TD, weight_CD.shape, is_coalesced=True, check_invariants=True
        )
        started = time.perf_counter()
        optimizer.step()
        return {"torch.optim.SparseAdam": time.perf_counter() - started}

    return update


def head_on_laptop(num_classes: int, dim: int, num_rows: int, steps: int) -> LaptopRun:
    """Head and optimizer alone, on random features."""
    head = ShardedHead(LAPTOP_HEAD, num_classes, dim, adamw=AdamWSettings("lazy", BETAS))
    phases = head_phases(head, *random_batch(num_rows, num_classes, dim, NUM_LABELS), steps)
    return LaptopRun(sum(phases.values()), phases, status_bytes("VmHWM"), head_state_bytes(head))


def rival_on_laptop(num_classes: int, dim: int, num_rows: int, steps: int) -> LaptopRun:
    """The k-slot Partial FC with PyTorch's fused AdamW, on the same features."""
    spec = LAPTOP_HEAD
    head = KSlotPartialFC(num_classes, dim, negative_ratio=spec.negative_ratio, scale=spec.scale, margin=spec.margin)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LR, betas=BETAS, weight_decay=0.0, fused=True)
    features_BD, labels_BL = random_batch(num_rows, num_classes, dim, NUM_LABELS)
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        optimizer.zero_grad()
        head(features_BD, labels_BL).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    return LaptopRun(
        statistics.median(seconds[1:]), {}, status_bytes("VmHWM"), sum(tensor.nbytes for tensor in tensors)
    )


def training_on_laptop(num_classes: int, num_rows: int, steps: int) -> LaptopRun:
    """Whole training steps of the tower conv-tiny (64 dims) on random pixels, clipping and both optimizers included."""
    fields = LAPTOP_HEAD.model_dump()
    spec = TrainSpec(**fields, num_positive=NUM_LABELS, batch_size=num_rows)
    trainee = new_trainee(spec, num_classes=num_classes, device=torch.device("cpu"))
    _, positives_BL = random_batch(num_rows, num_classes, 1, NUM_LABELS)
    pixels_BCHW = torch.randint(256, (num_rows, 3, spec.image_size, spec.image_size), dtype=torch.uint8)
    batch = Batch(pixels_BCHW, positives_BL, torch.arange(num_rows), ("",) * num_rows)
    seconds = []
    for step in range(steps + 1):
        started = time.perf_counter()
        train_step(trainee, batch, step=step, rate_share=1.0)
        seconds.append(time.perf_counter() - started)
    state_bytes = head_state_bytes(trainee.head)
    return LaptopRun(statistics.median(seconds[1:]), {}, status_bytes("VmHWM"), state_bytes)


def head_state_bytes(head: ShardedHead) -> int:
    """What the row optimizer keeps beside the centers."""
    return sum(tensor.nbytes for name, tensor in vars(head.optimizer.state).items() if name != "center")
