"""Towers by name: image encoders that take uint8 pixels and start from seeded random weights.

``conv-tiny`` is for a laptop. ``open_clip:<architecture>`` builds the vision tower of open_clip without its text tower,
``timm:<model>`` a timm model without its classifier, both without pretrained weights. Nothing in a tower may depend on
a batch's other rows or on a random state: no dropout, and no BatchNorm where the batch comes in parts.

B images, C channels, D dims of the feature.
"""

import difflib
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from mlcd_core.errors import ConfigError, TrainingError
from mlcd_core.train import conv_tiny

CONV_TINY = "conv-tiny"
OPEN_CLIP = "open_clip:"
TIMM = "timm:"
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
            return Tower(conv_tiny.ConvTiny(), conv_tiny.DIM)
        if name.startswith(OPEN_CLIP):
            return _open_clip_tower(name.removeprefix(OPEN_CLIP), image_size)
        if name.startswith(TIMM):
            return _timm_tower(name.removeprefix(TIMM), image_size)
    raise _unknown_tower(name, [CONV_TINY, f"{OPEN_CLIP}ViT-B-32", f"{TIMM}vit_base_patch32_224"])


def check_batch_norm(tower: Tower, name: str, *, world_size: int, accumulation: int) -> None:
    """Raise TrainingError for BatchNorm where a batch comes in parts: its statistics would be those of a part."""
    has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in tower.modules())
    if has_batch_norm and world_size * accumulation > 1:
        raise TrainingError(
            f"the tower {name} has BatchNorm and got {world_size} ranks with train.accumulation={accumulation}; "
            "expected 1 and 1, since each part would be normalised by its own rows: set train.workers=1 and "
            "train.accumulation=1, or take a tower with LayerNorm or GroupNorm"
        )


def checkpoint_activations(tower: Tower, name: str) -> None:
    """Let the tower recompute its activations in the backward pass. Raises ConfigError for a tower that cannot."""
    body: Any = getattr(tower.body, "trunk", tower.body)  # open_clip's wrapper of timm only logs a refusal
    if hasattr(body, "set_grad_checkpointing"):
        with suppress(AssertionError):  # so does timm refuse
            body.set_grad_checkpointing(True)
    # open_clip's ResNets take the call and do nothing
    if not any(getattr(module, "grad_checkpointing", False) for module in tower.modules()):
        raise ConfigError(
            f"train.checkpoint_activations=true, and the tower {name} cannot recompute its activations; expected "
            f"{CONV_TINY} or a vision transformer: set it to false, and train.accumulation higher to save memory"
        )


def _open_clip_tower(architecture: str, image_size: int) -> Tower:
    import open_clip
    from open_clip.model import _build_vision_tower

    config: dict[str, Any] | None = open_clip.get_model_config(architecture)
    if config is None:
        raise _unknown_tower(f"{OPEN_CLIP}{architecture}", [OPEN_CLIP + known for known in open_clip.list_models()])
    # random dropping would make a resumed run another run
    vision = {**config["vision_cfg"], "image_size": image_size, "patch_dropout": 0.0, "timm_model_pretrained": False}
    vision["output_tokens"] = False  # CoCa's would come as a second result
    body = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
    if hasattr(body, "trunk") and hasattr(body.trunk, "set_input_size"):
        body.trunk.set_input_size(img_size=image_size)  # the builder leaves timm's own size
    _switch_off_dropout(body)
    return Tower(body, config["embed_dim"])


def _timm_tower(model: str, image_size: int) -> Tower:
    import timm

    if not timm.is_model(model):
        raise _unknown_tower(f"{TIMM}{model}", [TIMM + known for known in timm.list_models()])
    # models of a fixed size, vision transformers, must be told it; the others do not know the argument
    config = timm.get_pretrained_cfg(model)
    size = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
    body = timm.create_model(model, pretrained=False, num_classes=0, **size)
    _switch_off_dropout(body)
    return Tower(body, getattr(body, "head_hidden_size", None) or body.num_features)


def _switch_off_dropout(body: nn.Module) -> None:
    for module in body.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif type(module).__name__ == "DropPath":  # timm's stochastic depth, which has several copies
            module.drop_prob = 0.0  # type: ignore[assignment]


def _unknown_tower(name: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(near)}?" if near else "see open_clip.list_models() and timm.list_models()"
    return ConfigError(
        f"train.tower={name} is no tower; expected {CONV_TINY}, {OPEN_CLIP}<architecture> or {TIMM}<model>; {meant}"
    )
