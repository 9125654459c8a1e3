"""Towers by name: image encoders that take uint8 pixels and start from seeded random weights.

``conv-tiny`` is for a laptop: a patch-8 ViT of the same size does not leave the untrained level in minutes, six
convolutions do. They are weight-standardised, since BatchNorm is out and GroupNorm learns slowly here: with the same
labels (6,000 digit scenes, K = 200, 10 epochs, one seed) the probe mAP was .41 with InstanceNorm, .48 with GroupNorm,
.63 with standardised weights, GroupNorm added or not, and .76 with BatchNorm.

``open_clip:<architecture>`` builds the vision tower of open_clip without its text tower and pretrained weights. Nothing
in a tower may depend on a batch's other rows or on a random state: no dropout, and no BatchNorm above one rank.

B images, C channels, D dims of the feature.
"""

import difflib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlcd_core.errors import ConfigError, TrainingError

CONV_TINY = "conv-tiny"
OPEN_CLIP = "open_clip:"
# (width, stride): 250K parameters with the two pools and the linear layer
CONV_TINY_LAYERS = ((24, 2), (48, 1), (48, 2), (96, 1), (96, 2), (96, 1))
CONV_TINY_DIM = 64
# sqrt(2 / (1 - 1 / pi)): a ReLU of unit normals has this much less deviation
RELU_GAIN = 1.7139588594436646
# mean and standard deviation of the colours in the training data of OpenAI's CLIP, which open_clip shares
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Tower(nn.Module):
    """uint8 RGB images to float32 features (not normalised) of ``dim`` dims."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, body: nn.Module, dim: int) -> None:
        super().__init__()
        self.body = body
        self.dim = dim
        self.register_buffer("mean_C11", torch.tensor(CLIP_MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std_C11", torch.tensor(CLIP_STD).view(3, 1, 1) * 255, persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Features of uint8 images of the size the tower was built for."""
        features_BD: Tensor = self.body((images_BCHW - self.mean_C11) / self.std_C11)
        return features_BD


def build_tower(name: str, *, image_size: int, seed: int) -> Tower:
    """The tower with the initial weights of ``seed``: the same in every process; torch's random state is left alone.

    Raises ConfigError for a name that no tower has.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == CONV_TINY:
            return Tower(_conv_tiny(), CONV_TINY_DIM)
        if name.startswith(OPEN_CLIP):
            return _open_clip_tower(name.removeprefix(OPEN_CLIP), image_size)
    raise _unknown_tower(name, [CONV_TINY, f"{OPEN_CLIP}ViT-B-32"])


def check_tower_ranks(tower: Tower, name: str, world_size: int) -> None:
    """Raise TrainingError for BatchNorm above one rank: its statistics would be of a rank's rows, not of the batch."""
    has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in tower.modules())
    if world_size > 1 and has_batch_norm:
        raise TrainingError(
            f"the tower {name} has BatchNorm and got {world_size} ranks; expected 1, since each rank would normalise "
            "by its own rows: set train.workers=1, or take a tower with LayerNorm or GroupNorm"
        )


class _MeanMaxPool(nn.Module):
    """Mean and maximum over the image, side by side: the maximum keeps small objects."""

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        return torch.cat([maps_BCHW.mean(dim=(2, 3)), maps_BCHW.amax(dim=(2, 3))], dim=1)


class _StandardisedConv2d(nn.Conv2d):
    """A 3x3 convolution whose filters are standardised to zero mean and fixed length, with learned gain and bias.

    Weight standardisation (Qiao et al., arXiv 1903.10520) scaled as in normaliser-free networks (Brock et al., arXiv
    2101.08692): random inputs keep their variance through convolution and ReLU, so no norm layer is needed.
    """

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__(width_in, width_out, kernel_size=3, stride=stride, padding=1)
        self.gain = nn.Parameter(torch.ones(width_out, 1, 1, 1))
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        fan_in = self.weight[0].numel()
        filters = (self.weight - mean) * torch.rsqrt(variance * fan_in + 1e-8) * (RELU_GAIN * self.gain)
        return functional.conv2d(maps_BCHW, filters, self.bias, self.stride, self.padding)


class _ChannelsLast(nn.Module):
    """The same numbers in another memory order: convolutions take 12 % less time on CPU."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW.contiguous(memory_format=torch.channels_last)


def _conv_tiny() -> nn.Module:
    layers: list[nn.Module] = [_ChannelsLast()]
    width_before = 3
    for width, stride in CONV_TINY_LAYERS:
        layers += [_StandardisedConv2d(width_before, width, stride), nn.ReLU(inplace=True)]
        width_before = width
    return nn.Sequential(*layers, _MeanMaxPool(), nn.Linear(2 * width_before, CONV_TINY_DIM))


def _open_clip_tower(architecture: str, image_size: int) -> Tower:
    import open_clip
    from open_clip.model import _build_vision_tower

    config: dict[str, Any] | None = open_clip.get_model_config(architecture)
    if config is None:
        raise _unknown_tower(
            f"{OPEN_CLIP}{architecture}", [CONV_TINY, *(OPEN_CLIP + known for known in open_clip.list_models())]
        )
    # random dropping would make a resumed run another run
    vision = {**config["vision_cfg"], "image_size": image_size, "patch_dropout": 0.0, "timm_model_pretrained": False}
    if "timm_model_name" in vision:
        vision |= {"timm_drop": 0.0, "timm_drop_path": None}
    body = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
    return Tower(body, config["embed_dim"])


def _unknown_tower(name: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(near)}?" if near else "its names are those of open_clip.list_models()"
    return ConfigError(f"train.tower={name} is no tower; expected {CONV_TINY} or {OPEN_CLIP}<architecture>; {meant}")
