"""A tower as an embedder, so that evaluation treats it like any off-the-shelf model."""

import torch
from torch import Tensor

from mlcd_core.identity import fingerprint, sha256_hex, spec_record
from mlcd_core.images.precision import Precision, autocast, check_precision
from mlcd_core.specs import TrainSpec
from mlcd_core.train.checkpoint import load_tower
from mlcd_core.train.model import build_tower


class TowerEmbedder:
    """Encodes uint8 images with a tower: trained from the bytes of its checkpoint part, or untrained without them.

    The untrained tower has the initial weights of the same seed. Raises ConfigError for float16 on a CPU.
    """

    def __init__(
        self, spec: TrainSpec, *, weights: bytes | None, device: str, precision: Precision = "float32"
    ) -> None:
        check_precision(precision, device)
        tower = build_tower(spec.tower, image_size=spec.image_size, seed=spec.seed)
        if weights is not None:
            tower = load_tower(spec, weights)
        self._tower = tower.eval().to(device)
        self._device = device
        self._precision: Precision = precision
        self.dim = tower.dim
        self.image_size = spec.image_size
        self.fingerprint = fingerprint([spec_record(spec), sha256_hex(weights) if weights else None, precision])

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Float32 features [B, D] of uint8 images [B, 3, H, W], not normalised."""
        with torch.inference_mode(), autocast(self._precision, self._device):
            features_BD: Tensor = self._tower(images_BCHW.to(self._device))
        return features_BD.float()
