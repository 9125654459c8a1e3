"""Which towers of a run are estimated, and with which of its settings."""

from mlcd_core.config import load_config
from tasks.tower_estimates import estimate_towers

BIG = {
    "embed.embedder": "open_clip",
    "embed.architecture": "ViT-S-32-alt",
    "embed.image_size": 64,
    "embed.workers": 3,
    "train.tower": "timm:test_vit",
    "train.image_size": 96,
    "train.epochs": 4,
    "train.precision": "bfloat16",
}


def test_the_pair_of_a_laptop_is_measured_instead() -> None:
    assert estimate_towers(load_config("laptop", environment={}, overrides={}), num_rows=10, num_classes=5) == []


def test_each_tower_is_counted_as_it_is_set() -> None:
    config = load_config("laptop", environment={}, overrides=BIG)
    embed, train = estimate_towers(config, num_rows=1000, num_classes=50)
    assert (embed.stage, embed.tower, embed.image_size, embed.images) == ("embed", "open_clip:ViT-S-32-alt", 64, 1000)
    assert (embed.precision, embed.workers, embed.worker_memory) == ("float32", 3, None)
    assert (train.stage, train.tower, train.image_size, train.images) == ("train", "timm:test_vit", 96, 4000)
    assert train.precision == "bfloat16"
    assert train.worker_memory is not None
    assert embed.parameters > 20 * train.parameters


def test_recomputed_activations_take_operations_and_save_memory() -> None:
    kept, recomputed = (
        estimate_towers(
            load_config("laptop", environment={}, overrides={**BIG, "train.checkpoint_activations": value}),
            num_rows=10,
            num_classes=50,
        )[1]
        for value in (False, True)
    )
    assert recomputed.image_flop > 1.3 * kept.image_flop
    assert kept.worker_memory is not None
    assert recomputed.worker_memory is not None
    assert recomputed.worker_memory.items["activations"] < kept.worker_memory.items["activations"] / 2
