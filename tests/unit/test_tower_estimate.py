"""The cost of the towers, against numbers worked out by hand."""

import pytest

from mlcd_core.runtimes import TrainRuntime
from mlcd_core.specs import TrainSpec
from mlcd_core.tower_estimate import TowerCost, TowerEstimate, estimate_embedding, estimate_training

# a million parameters, 10 MFLOP, 1 MB kept of an image
COST = TowerCost(dim=100, parameters=1_000_000, forward_flop=10_000_000, kept_bytes=1_000_000)
SPEC = {"tower": "timm:test_vit", "epochs": 5, "batch_size": 800, "num_positive": 8, "precision": "bfloat16"}


def training(*, workers: int = 4, shard: bool = False, recompute: bool = False, **spec: object) -> TowerEstimate:
    runtime = TrainRuntime(workers=workers, shard_tower=shard, checkpoint_activations=recompute)
    return estimate_training(COST, TrainSpec(**{**SPEC, **spec}), runtime, num_rows=1000, num_classes=20_000)


def memory(**options: object) -> dict[str, int]:
    estimate = training(**options)
    assert estimate.worker_memory is not None
    assert estimate.worker_memory.total_bytes == sum(estimate.worker_memory.items.values())
    return dict(estimate.worker_memory.items)


def test_embedding_is_one_pass_of_every_image() -> None:
    found = estimate_embedding(
        COST, tower="open_clip:ViT-B-32", image_size=224, precision="float16", num_rows=3_000, workers=2
    )
    assert (found.images, found.image_flop, found.total_flop) == (3_000, 10_000_000, 30_000_000_000)


def test_training_is_three_passes_of_every_image_in_every_epoch_and_the_head() -> None:
    # 8 x 2,000 sampled classes x 100 dims = 1.6 MFLOP
    assert (training().images, training().image_flop, training().total_flop) == (5_000, 31_600_000, 158_000_000_000)
    assert training(recompute=True).image_flop == 41_600_000


@pytest.mark.parametrize(
    ("precision", "kind", "count", "hours"),
    [
        # 1.58e11 / (count * 0.4 * peak) / 3600
        ("bfloat16", "A100", 1, 3.5167e-07),
        ("bfloat16", "H100/H200", 8, 1.3868e-08),
        ("float32", "A100", 8, 7.0335e-07),
        ("float32", "CPU core", 2, 4.3889e-04),
    ],
)
def test_time_is_operations_over_a_share_of_the_peak_of_the_precision(
    precision: str, kind: str, count: int, hours: float
) -> None:
    devices = {(device.kind, device.count): device.total_h for device in training(precision=precision).devices}
    assert devices[kind, count] == pytest.approx(hours, rel=1e-4)


def test_memory_of_a_rank_is_its_tower_its_rows_and_its_classes() -> None:
    items = memory()
    assert [items[name] for name in ("weights", "gradients", "moments", "weights in short")] == [
        4_000_000,
        4_000_000,
        8_000_000,
        2_000_000,
    ]
    assert items["activations"] == 200 * 1_000_000  # 800 rows on 4 ranks
    assert (items["centers"], items["centers' moments"]) == (5_000 * 100 * 4, 5_000 * 100 * 8)
    # 500 sampled and 800 x 8 / 4 positives of 5,000, read and with a gradient
    assert items["touched centers"] == 2 * 2_100 * 100 * 4


def test_what_saves_memory_is_seen() -> None:
    assert memory(shard=True)["moments"] == 2_000_000
    assert memory(accumulation=10)["activations"] == 20 * 1_000_000
    assert memory(workers=8)["centers"] == 2_500 * 100 * 4
    assert "weights in short" not in memory(precision="float32")
    assert memory(ema_decay=0.9)["average"] == 4_000_000
