"""What an embedder is, where its weights come from, and how one is built.

Weights are found once, by whoever plans the stage, and travel as bytes: their sha256 is what the spec keeps, so the
same file under another path or tag is the same stage. Nothing here downloads unless an open_clip tag is named. A tower
trained here is a weights file like others; which manifest it came from is known to whoever filled in the spec.

B images of a batch, C = 3 colours, H = W = image_size, D embedding dims.
"""

import difflib
import importlib.util
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mlcd_core.errors import ConfigError
from mlcd_core.identity import sha256_hex
from mlcd_core.specs import EmbedSpec, TrainSpec

if TYPE_CHECKING:
    from torch import Tensor  # planning finds weights without loading torch

    from mlcd_core.train.encoder import TowerEmbedder

CODEBOOK_FILE = "hog_words.safetensors"
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


class Embedder(Protocol):
    """Images in, vectors out; the same for the embed stage and for evaluation.

    ``fingerprint`` names weights and preprocessing. ``encode`` takes uint8 RGB of ``image_size`` on any device and
    gives float32 [B, D] on its own, not normalised; a row's values do not depend on its batch beyond rounding.
    """

    fingerprint: str
    dim: int
    image_size: int

    def encode(self, images_BCHW: "Tensor") -> "Tensor":
        """Embed a batch."""
        ...


def find_weights(spec: EmbedSpec, pretrained: str) -> bytes:
    """Read the weights of ``spec.embedder`` from a local file, the package (hog_words) or an open_clip tag.

    Raises ConfigError for a missing file, an unknown architecture or tag, and a sha256 other than the spec's.
    """
    if spec.embedder == "hog_words" and not pretrained:
        return _checked(resources.files("mlcd_core.images").joinpath(CODEBOOK_FILE).read_bytes(), spec, pretrained)
    path = Path(pretrained).expanduser()
    if pretrained and path.is_file():
        return _checked(path.read_bytes(), spec, pretrained)
    if spec.embedder != "open_clip" or path.suffix in WEIGHTS_SUFFIXES or len(path.parts) > 1:
        raise ConfigError(
            f"embed.pretrained={pretrained} is not a file; expected the weights of {spec.embedder}: "
            f"give the path of an existing file{_or_leave_it(spec)}"
        )
    from mlcd_core.images.open_clip_embedder import download_weights

    return _checked(download_weights(spec.architecture, tag=pretrained), spec, pretrained)


def embedding_dim(spec: EmbedSpec, pretrained: str) -> int:
    """D, from the codebook's header, open_clip's model file, or the tower built without its weights.

    Only a tower loads torch. Raises ConfigError for an architecture that does not exist.
    """
    if spec.embedder == "tower":
        return _tower_embedder(spec, None, "cpu").dim
    if spec.embedder == "hog_words":
        weights = find_weights(spec, pretrained)
        header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
        return int(header["whitening_KD"]["shape"][1])
    # found without importing open_clip, which would load torch
    package = importlib.util.find_spec("open_clip")
    folder = Path(package.origin or "").parent / "model_configs" if package else Path()
    config = folder / f"{spec.architecture}.json"
    if not spec.architecture or not config.is_file():
        known = sorted(path.stem for path in folder.glob("*.json"))
        near = difflib.get_close_matches(spec.architecture, known, n=3)
        meant = f"did you mean {' or '.join(near)}?" if near else f"open_clip here has {len(known)} models"
        raise ConfigError(f"embed.architecture={spec.architecture!r} is no open_clip model; {meant}")
    return int(json.loads(config.read_text(encoding="utf-8"))["embed_dim"])


def build_embedder(spec: EmbedSpec, *, weights: bytes, device: str) -> Embedder:
    """Build the embedder of a spec on a torch device. Raises ConfigError for weights that are not the spec's."""
    _checked(weights, spec, "the given weights")
    if spec.embedder == "hog_words":
        from mlcd_core.images.hog_words import build_hog_words

        return build_hog_words(weights, image_size=spec.image_size, device=device)
    if spec.embedder == "tower":
        return _tower_embedder(spec, weights, device)
    from mlcd_core.images.open_clip_embedder import build_open_clip

    return build_open_clip(spec.architecture, weights=weights, image_size=spec.image_size, device=device)


def _tower_embedder(spec: EmbedSpec, weights: bytes | None, device: str) -> "TowerEmbedder":
    from mlcd_core.train.encoder import TowerEmbedder

    # of a train spec only these two shape a tower whose weights are given
    tower = TrainSpec(tower=spec.architecture, image_size=spec.image_size)
    return TowerEmbedder(tower, weights=weights, device=device)


def _checked(weights: bytes, spec: EmbedSpec, source: str) -> bytes:
    digest = sha256_hex(weights)
    if spec.weights_sha256 and spec.weights_sha256 != digest:
        raise ConfigError(
            f"embed.weights_sha256 is {spec.weights_sha256}, but {source or 'the packaged codebook'} has {digest}: "
            "point embed.pretrained at the right file, or clear embed.weights_sha256 to take this one"
        )
    return weights


def _or_leave_it(spec: EmbedSpec) -> str:
    others = {"hog_words": ", or leave it empty for the packaged codebook", "open_clip": ", or an open_clip tag"}
    return others.get(spec.embedder, "")
