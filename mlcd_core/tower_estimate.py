"""What the two towers of a run will cost, before anything runs: operations, memory, hours. Pure arithmetic.

Embedding is a forward pass of every image. Training is a forward and a backward pass of twice the operations, of every
image in every epoch, one forward pass more where activations are recomputed, and in the head 8 operations per sampled
class and dimension. What embeds, what is counted as its cost, is the image tower alone.

Hours are operations over 40 % of a device's peak, the most that is published of CLIP training (NeMo, A100); the
LAION-400M runs of open_clip made 11 to 13 % (from the GPU hours in its docs/PRETRAINED.md). Decoding is not in them: a
ViT-B/32 takes more images a second than the cores beside a GPU decode.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mlcd_core.estimate import CPU_PAIR_FLOPS, GPU_COUNTS, PEAK_FLOPS, PEAK_FLOPS_FLOAT32, WorkerMemory
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.specs import StageName, TrainSpec

SHARE_OF_PEAK = 0.4
BACKWARD = 2  # in forward passes: gradients of inputs and of weights
FLOAT, DOUBLE = 4, 8
TILE = 4096
SHORT = {"bfloat16": 2, "float16": 2, "float32": 0}  # bytes of a weight's copy in that precision


@dataclass(frozen=True)
class TowerCost:
    """What was counted of a tower: of one image the operations and the bytes that are kept for the backward pass."""

    dim: int
    parameters: int
    forward_flop: int
    kept_bytes: int


@dataclass(frozen=True)
class TowerHours:
    """``count`` devices of one kind, and their hours for the whole stage; None where they lack its precision."""

    kind: str
    count: int
    total_h: float | None


@dataclass(frozen=True)
class TowerEstimate:
    """A stage whose work is that of a tower. images: passes, an image once per epoch. image_flop: with the head.

    worker_memory: of training, what one of ``workers`` holds.
    """

    stage: StageName
    tower: str
    image_size: int
    precision: str
    parameters: int
    images: int
    image_flop: int
    total_flop: int
    workers: int
    worker_memory: WorkerMemory | None
    devices: tuple[TowerHours, ...]


def head_flops(num_sampled: int, dim: int) -> int:
    """FLOPs of the head on one image: four products of it with all sampled centers, one of them a recomputation."""
    return 8 * num_sampled * dim


def estimate_embedding(
    cost: TowerCost, *, tower: str, image_size: int, precision: str, num_rows: int, workers: int
) -> TowerEstimate:
    """The embed stage of ``num_rows`` images."""
    total_flop = num_rows * cost.forward_flop
    return TowerEstimate(
        stage="embed",
        tower=tower,
        image_size=image_size,
        precision=precision,
        parameters=cost.parameters,
        images=num_rows,
        image_flop=cost.forward_flop,
        total_flop=total_flop,
        workers=workers,
        worker_memory=None,
        devices=_devices(total_flop, precision),
    )


def estimate_training(
    cost: TowerCost, spec: TrainSpec, runtime: TrainRuntime, *, num_rows: int, num_classes: int
) -> TowerEstimate:
    """The train stage; ``cost`` is counted with the activations that the runtime keeps."""
    passes = 1 + BACKWARD + (1 if runtime.checkpoint_activations else 0)
    images = spec.epochs * num_rows
    image_flop = passes * cost.forward_flop + head_flops(round(num_classes * spec.negative_ratio), cost.dim)
    items = _training_bytes(cost, spec, runtime, num_classes)
    return TowerEstimate(
        stage="train",
        tower=spec.tower,
        image_size=spec.image_size,
        precision=spec.precision,
        parameters=cost.parameters,
        images=images,
        image_flop=image_flop,
        total_flop=images * image_flop,
        workers=runtime.workers,
        worker_memory=WorkerMemory("its GPU, or of the machine without one", sum(items.values()), items),
        devices=_devices(images * image_flop, spec.precision),
    )


def _training_bytes(cost: TowerCost, spec: TrainSpec, runtime: TrainRuntime, num_classes: int) -> Mapping[str, int]:
    """What one rank holds when it holds the most: after its last forward pass, or while gradients are measured.

    Within 7 % of what torch allocated on a CPU. Resident memory was a quarter more there, which the heap keeps, and
    Python with torch and open_clip needs 750 MB of the machine's beside it.
    """
    workers = runtime.workers
    own = -(-cost.parameters // (workers if runtime.shard_tower else 1))
    classes = -(-num_classes // workers)
    positives = -(-spec.batch_size * spec.num_positive // workers)
    touched = min(classes, round(classes * spec.negative_ratio) + positives)
    piece = spec.batch_size // spec.accumulation  # of all ranks
    items = {
        "weights": FLOAT * own,
        "gradients": FLOAT * own,
        "moments": 2 * FLOAT * own,
        "average": FLOAT * own if spec.ema_decay else 0,
        "centers": FLOAT * classes * cost.dim,
        "centers' moments": 2 * FLOAT * classes * cost.dim,
        # as read, their gradient, and that of one more piece
        "touched centers": (2 if spec.accumulation == 1 else 3) * FLOAT * touched * cost.dim,
    }
    forward: dict[str, int] = {
        "weights in short": SHORT[spec.precision] * own,
        "activations": cost.kept_bytes * (piece // workers),
        # of all ranks: gathered, and their gradient
        "features": 4 * FLOAT * piece * cost.dim,
        "tiles": FLOAT * (2 * min(TILE, piece) * TILE + 3 * TILE * cost.dim),
    }
    # the norm is a sum of squares in float64
    squares = {"squared gradients": 2 * DOUBLE * max(own, touched * cost.dim)}
    items |= forward if sum(forward.values()) > sum(squares.values()) else squares
    return {name: size for name, size in items.items() if size}


def _devices(total_flop: int, precision: str) -> tuple[TowerHours, ...]:
    peaks: dict[str, float | None] = {**(PEAK_FLOPS_FLOAT32 if precision == "float32" else PEAK_FLOPS)}
    if precision == "bfloat16":
        peaks["V100"] = None
    speeds = [(kind, n, n * SHARE_OF_PEAK * peak if peak else None) for kind, peak in peaks.items() for n in GPU_COUNTS]
    speeds.append(("CPU core", 2, CPU_PAIR_FLOPS))
    return tuple(TowerHours(kind, count, total_flop / speed / 3600 if speed else None) for kind, count, speed in speeds)
