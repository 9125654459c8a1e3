"""The numbers that a run is watched by, against counts and sums by hand."""

import pytest
import torch

from mlcd_core.specs import TrainSpec
from mlcd_core.tower_estimate import head_flops
from mlcd_core.train.conv_tiny import DIM, LAYERS
from mlcd_core.train.flops import KINDS, peak_flops, tower_flops
from mlcd_core.train.head import ShardedHead
from mlcd_core.train.model import build_tower
from mlcd_core.train.ranks import Ranks
from mlcd_core.train.watches import DeadCenters, feature_watches, head_watches
from tests.unit.train.tiny import tiny_spec


def test_equal_features_have_mean_norm_one_and_spread_features_full_rank():
    assert feature_watches(torch.eye(4)[[0, 0, 0]])["feature_mean_norm"] == pytest.approx(1)
    spread = feature_watches(torch.cat([torch.eye(4), -torch.eye(4)]))
    assert spread["feature_mean_norm"] == pytest.approx(0)
    assert spread["effective_rank"] == pytest.approx(4)


def test_center_norm_is_the_mean_and_only_mlcd_bias_has_a_threshold():
    head = ShardedHead(tiny_spec(), 24, 5)
    assert head_watches(head) == {"center_norm": pytest.approx(sum(row.norm() for row in head.centers_CD) / 24)}
    assert head_watches(ShardedHead(tiny_spec(loss="mlcd_bias"), 24, 5))["threshold"] == 0.0


def test_dead_centers_are_those_of_the_last_whole_epoch():
    dead = DeadCenters(6, Ranks(), torch.device("cpu"))
    dead.add(torch.tensor([[0, 1]]))
    dead.end_epoch(whole=False)
    assert dead.count is None
    dead.add(torch.tensor([[0, 1], [1, -1]]))
    dead.add(torch.tensor([[5, -1]]))
    dead.end_epoch(whole=True)
    assert dead.count == 3
    dead.add(torch.tensor([[2, 3]]))
    assert dead.count == 3
    dead.end_epoch(whole=True)
    assert dead.count == 4


def test_tower_flops_are_two_per_product_three_times_over():
    size, width_before, products = 16, 3, 0
    for width, stride in LAYERS:
        size //= stride
        products += size * size * 9 * width_before * width
        width_before = width
    products += 2 * width_before * DIM
    assert tower_flops(build_tower("conv-tiny", image_size=16, seed=0), 16) == 3 * 2 * products


def test_attention_is_counted_and_the_tower_left_as_it_was():
    tower = build_tower("timm:test_vit", image_size=32, seed=0)
    tokens, width, blocks = 5, tower.dim, len(tower.body.blocks)
    patches = 4 * 3 * 16 * 16 * width
    block = tokens * width * width * (3 + 1 + 3 + 3) + 2 * tokens * tokens * width
    assert tower_flops(tower, 32) == 3 * 2 * (patches + blocks * block)
    assert tower.training
    assert all(parameter.grad is None for parameter in tower.parameters())


def test_a_cpu_has_no_known_peak_and_every_known_card_has_one_for_each_precision(monkeypatch):
    assert peak_flops(torch.device("cpu"), "float32") is None
    precisions = TrainSpec.model_fields["precision"].annotation.__args__
    for part in KINDS:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, part=part: f"NVIDIA {part}")
        assert all(peak_flops(torch.device("cuda", 0), precision) for precision in precisions)
    assert peak_flops(torch.device("cuda", 0), "bfloat16") == 312e12  # of the last one, an A100
    assert head_flops(num_sampled=100, dim=64) == 51_200
