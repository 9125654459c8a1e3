"""What an embedder is, where its weights come from, and how one is built.

Weights are found once, by whoever plans the stage, and travel as bytes: their sha256 is what the spec keeps, so the
same file under another path or tag is the same stage. Nothing here downloads unless an open_clip tag is named. A tower
trained here is a weights file like others; which manifest it came from is known to whoever filled in the spec.

B images of a batch, C = 3 colours, H = W = image_size, D embedding dims.
"""

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mlcd_core.errors import ConfigError
from mlcd_core.identity import sha256_hex
from mlcd_core.images.open_clip_config import check_text_tower, open_clip_dim
from mlcd_core.objects.address import is_s3
from mlcd_core.specs import EmbedSpec, TrainSpec
from mlcd_core.store.opening import open_files

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


def check_embed_spec(spec: EmbedSpec) -> None:
    """Raise ConfigError for settings that exclude each other; reads no weights and loads no torch."""
    if spec.feature == "image_text_mean" and spec.embedder != "open_clip":
        raise ConfigError(
            f"embed.feature=image_text_mean with embed.embedder={spec.embedder}, which has no text tower; "
            "expected open_clip: set embed.feature=image, or embed.embedder=open_clip"
        )
    if spec.feature == "image_text_mean" and not spec.caption_column:
        raise ConfigError(
            "embed.feature=image_text_mean without embed.caption_column; expected the name of a string column: set it"
        )
    if spec.precision != "float32" and spec.embedder not in ("open_clip", "tower"):
        raise ConfigError(
            f"embed.precision={spec.precision} with embed.embedder={spec.embedder}, which has float32 alone: "
            "leave embed.precision out"
        )
    if spec.embedder == "open_clip":
        check_text_tower(spec.architecture, captions=spec.feature == "image_text_mean")


def find_weights(spec: EmbedSpec, pretrained: str) -> bytes:
    """Read the weights of ``spec.embedder`` from a file, local or on S3, the package (hog_words) or an open_clip tag.

    Raises ConfigError for settings that exclude each other, a missing file, an unknown architecture or tag, and a
    sha256 other than the spec's; StoreError for storage that does not answer.
    """
    check_embed_spec(spec)
    if spec.embedder == "adopted":
        raise _has_no_weights()
    if is_s3(pretrained):
        return _checked(_from_storage(pretrained), spec, pretrained)
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
    from mlcd_core.images.open_clip_model import download_weights

    return _checked(download_weights(spec.architecture, tag=pretrained), spec, pretrained)


def embedding_dim(spec: EmbedSpec, source: str) -> int:
    """D, from the codebook's header, open_clip's model file, the adopted vectors, or the tower without its weights.

    source: the weights as ``find_weights`` takes them, or the adopted vectors. Only a tower loads torch. Raises
    ConfigError for an architecture that does not exist.
    """
    if spec.embedder == "tower":
        return _tower_embedder(spec, None, "cpu").dim
    if spec.embedder == "hog_words":
        weights = find_weights(spec, source)
        header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
        return int(header["whitening_KD"]["shape"][1])
    if spec.embedder == "adopted":
        from mlcd_core.images.adopted import check_adopted

        return check_adopted(source, key_column=spec.key_column).dim
    return open_clip_dim(spec.architecture)


def build_embedder(spec: EmbedSpec, *, weights: bytes, device: str) -> Embedder:
    """Build the embedder of a spec on a torch device; with ``image_text_mean`` it has ``encode_with_captions`` too.

    Raises ConfigError for weights that are not the spec's, and for what the device cannot do.
    """
    check_embed_spec(spec)
    if spec.embedder == "adopted":
        raise _has_no_weights()
    _checked(weights, spec, "the given weights")
    if spec.embedder == "hog_words":
        from mlcd_core.images.hog_words import build_hog_words

        return build_hog_words(weights, image_size=spec.image_size, device=device)
    if spec.embedder == "tower":
        return _tower_embedder(spec, weights, device)
    return _open_clip_embedder(spec, weights, device)


def _open_clip_embedder(spec: EmbedSpec, weights: bytes, device: str) -> Embedder:
    from mlcd_core.images.open_clip_embedder import build_open_clip
    from mlcd_core.images.open_clip_text import build_open_clip_with_text

    build = build_open_clip_with_text if spec.feature == "image_text_mean" else build_open_clip
    return build(
        spec.architecture, weights=weights, image_size=spec.image_size, device=device, precision=spec.precision
    )


def _from_storage(address: str) -> bytes:
    folder, _, name = address.rpartition("/")
    data = open_files(folder).read(name)
    if data is None:
        raise ConfigError(f"embed.pretrained={address} is not there; give the address of an object with the weights")
    return data


def _has_no_weights() -> ConfigError:
    return ConfigError(
        "embed.embedder=adopted has vectors and no weights, so it cannot embed other images; expected one of "
        "hog_words, open_clip and tower: set embed.embedder, or leave out what embeds (eval_data does)"
    )


def _tower_embedder(spec: EmbedSpec, weights: bytes | None, device: str) -> "TowerEmbedder":
    from mlcd_core.train.encoder import TowerEmbedder

    # of a train spec only these two shape a tower whose weights are given
    tower = TrainSpec(tower=spec.architecture, image_size=spec.image_size)
    return TowerEmbedder(tower, weights=weights, device=device, precision=spec.precision)


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
