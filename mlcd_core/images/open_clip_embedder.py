"""Any open_clip vision tower, its own or one of timm, as an embedder.

Pixels come from our decoder (RGB, short side resized, centre crop), not from open_clip's transform; mean and standard
deviation are applied on the device.

B images of a batch, C = 3 colours, H = W = image_size, D embedding dims.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlcd_core.errors import ConfigError
from mlcd_core.identity import fingerprint, sha256_hex
from mlcd_core.images.open_clip_model import ColourScale, colour_scale, load_model, model_config
from mlcd_core.images.precision import Precision, autocast, check_precision


@dataclass(frozen=True)
class OpenClipFacts:
    """What is known of an embedder beside its weights."""

    fingerprint: str
    dim: int
    image_size: int
    scale: ColourScale
    precision: Precision


class OpenClipEmbedder:
    """An ``Embedder``: the features that open_clip's ``encode_image`` gives for the same normalised pixels."""

    def __init__(self, visual: nn.Module, facts: OpenClipFacts) -> None:
        self.visual = visual
        self.fingerprint = facts.fingerprint
        self.dim = facts.dim
        self.image_size = facts.image_size
        self.precision = facts.precision
        self.device = next(visual.parameters()).device
        self.mean_C11 = torch.tensor(facts.scale.mean, device=self.device).view(-1, 1, 1)
        self.std_C11 = torch.tensor(facts.scale.std, device=self.device).view(-1, 1, 1)

    @torch.inference_mode()
    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Embed uint8 RGB images, float32 [B, D], not normalised, on the tower's device."""
        pixels_BCHW = images_BCHW.to(self.device).float() / 255
        with autocast(self.precision, self.device.type):
            features = self.visual((pixels_BCHW - self.mean_C11) / self.std_C11)
        # CoCa's tower gives its patch tokens beside the feature
        features_BD: Tensor = features[0] if isinstance(features, tuple) else features
        return features_BD.float()


def build_open_clip(
    architecture: str, *, weights: bytes, image_size: int, device: str, precision: Precision = "float32"
) -> OpenClipEmbedder:
    """Build the vision tower of ``architecture`` from a safetensors file or a torch state dict of the whole model.

    Raises ConfigError for an unknown architecture, weights that do not fit it, an image size that is not its own, or
    float16 on a CPU.
    """
    facts = open_clip_facts(architecture, weights, image_size=image_size, precision=precision)
    check_precision(precision, device)
    visual = load_model(architecture, weights).visual.to(device).eval()
    return OpenClipEmbedder(visual, facts)


def open_clip_facts(
    architecture: str, weights: bytes, *, image_size: int, precision: Precision, feature: str = "image"
) -> OpenClipFacts:
    """Describe an embedder before its weights are loaded. Raises ConfigError for an image size that is not its own."""
    config = model_config(architecture)
    own_size = config["vision_cfg"].get("image_size", 224)
    if own_size != image_size:
        raise ConfigError(
            f"embed.image_size is {image_size}, but {architecture} takes {own_size} px: set embed.image_size={own_size}"
        )
    return OpenClipFacts(
        fingerprint=fingerprint(["open_clip", architecture, sha256_hex(weights), image_size, precision, feature]),
        dim=config["embed_dim"],
        image_size=image_size,
        scale=colour_scale(architecture),
        precision=precision,
    )
