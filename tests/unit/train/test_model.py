"""Towers: seeded, free of batch effects, and refused by name with a suggestion."""

import open_clip
import pytest
import torch
from torch import nn

from mlcd_core.errors import ConfigError, TrainingError
from mlcd_core.train import Tower, build_tower
from mlcd_core.train.model import check_batch_norm


def images(count, size=32):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_conv_tiny_gives_64_dims_from_a_quarter_million_parameters():
    tower = build_tower("conv-tiny", image_size=32, seed=0)
    assert tower(images(2)).shape == (2, tower.dim) == (2, 64)
    assert 230_000 < sum(p.numel() for p in tower.parameters()) < 270_000


def test_weights_follow_the_seed_and_leave_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (build_tower("conv-tiny", image_size=32, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert any(not torch.equal(t, other.state_dict()[n]) for n, t in first.state_dict().items())


def test_a_feature_does_not_depend_on_the_other_rows():
    tower = build_tower("conv-tiny", image_size=32, seed=0).double()
    whole = tower(images(6))
    torch.testing.assert_close(tower(images(6)[2:3]), whole[2:3], rtol=1e-10, atol=1e-12)


def test_open_clip_towers_are_built_by_name():
    tower = build_tower("open_clip:ViT-S-32-alt", image_size=64, seed=0)
    features_BD = tower(images(2, size=64))
    assert features_BD.shape == (2, tower.dim)
    assert not any(isinstance(module, nn.Embedding) for module in tower.modules())


@pytest.mark.parametrize(
    "name", ["timm:test_vit", "timm:test_convnext", "timm:test_mambaout", "timm:test_efficientnet"]
)
def test_timm_towers_are_built_by_name_at_any_size(name):
    tower = build_tower(name, image_size=64, seed=0)
    again = build_tower(name, image_size=64, seed=0)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in tower.state_dict().items())
    assert tower(images(2, size=64)).shape == (2, tower.dim)


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_convnext", "open_clip:ViT-dropping"])
def test_no_tower_drops_anything(name, monkeypatch):
    vision = {
        "timm_model_name": "test_vit",
        "timm_pool": "",
        "timm_proj": "linear",
        "timm_drop": 0.5,
        "timm_drop_path": 0.5,
    }
    config = {"embed_dim": 8, "vision_cfg": {"image_size": 64, **vision}, "text_cfg": {}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-dropping", config)
    tower = build_tower(name, image_size=32, seed=0)
    assert tower.training
    assert torch.equal(tower(images(2)), tower(images(2)))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("conv_tiny", "did you mean conv-tiny"),
        ("open_clip:ViT-B32", "did you mean open_clip:ViT-B-32"),
        ("timm:vit_base_patch32_225", "did you mean timm:vit_base_patch32_224"),
    ],
)
def test_unknown_tower_names_the_near_ones(name, meant):
    with pytest.raises(ConfigError, match=meant):
        build_tower(name, image_size=32, seed=0)


def test_batch_norm_is_refused_above_one_rank_and_for_pieces():
    tower = Tower(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 4)
    check_batch_norm(tower, "with-batch-norm", world_size=1, accumulation=1)
    with pytest.raises(TrainingError, match=r"got 2 ranks with train.accumulation=1"):
        check_batch_norm(tower, "with-batch-norm", world_size=2, accumulation=1)
    with pytest.raises(TrainingError, match=r"got 1 ranks with train.accumulation=2"):
        check_batch_norm(tower, "with-batch-norm", world_size=1, accumulation=2)
    check_batch_norm(Tower(nn.LayerNorm(3), 3), "without", world_size=2, accumulation=2)
