"""open_clip models by architecture and weights: what is known of one, its published weights, and loading them.

Only an architecture and weights are known here, not the tag they came from, so a tag that wants another activation or
another mean than its architecture says is refused where it is named. What else a tag says of preprocessing (SigLIP's
tags squash images to a square) is not followed: all embedders see the same centre crop.
"""

import difflib
import pickle
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlcd_core.errors import ConfigError

TORCH_ZIP_MAGIC = b"PK"


@dataclass(frozen=True)
class ColourScale:
    """Per-colour mean and standard deviation of pixels in 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def model_config(architecture: str) -> dict[str, Any]:
    """What open_clip builds the architecture from. Raises ConfigError for an unknown one."""
    import open_clip

    known: list[str] = open_clip.list_models()
    if architecture not in known:
        raise ConfigError(
            f"embed.architecture={architecture!r} is no open_clip model; {_meant(architecture, known)}: "
            "set embed.architecture to a name of open_clip.list_models()"
        )
    config: dict[str, Any] = open_clip.get_model_config(architecture)
    return config


def colour_scale(architecture: str) -> ColourScale:
    """The mean and deviation that all published tags of an architecture share, else CLIP's."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    scales = {_scale_of(open_clip.get_pretrained_cfg(architecture, tag)) for tag in tags}
    return scales.pop() if len(scales) == 1 else _scale_of({})


def load_model(architecture: str, weights: bytes) -> Any:
    """Load by open_clip's own loader, which converts old and foreign state dicts; it reads files only.

    Raises ConfigError for weights that do not fit.
    """
    import open_clip
    from safetensors import SafetensorError

    suffix = ".pt" if weights.startswith(TORCH_ZIP_MAGIC) else ".safetensors"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"weights{suffix}")
        path.write_bytes(weights)
        try:
            return open_clip.create_model(architecture, pretrained=str(path), weights_only=True)
        except (RuntimeError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
            raise ConfigError(
                f"the weights do not fit {architecture} ({str(error)[:300]}); expected a safetensors file or a torch "
                "state dict of the whole model: check embed.architecture and embed.pretrained"
            ) from error


def download_weights(architecture: str, *, tag: str) -> bytes:
    """Fetch (or read from the hub's cache) the weights of a published tag.

    Raises ConfigError for an unknown tag, one whose preprocessing is not the architecture's, or a failed download.
    """
    import open_clip

    config = model_config(architecture)
    tags: list[str] = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        raise ConfigError(
            f"embed.pretrained={tag!r} is neither a file nor a tag of {architecture}; {_meant(tag, tags)}: "
            "give a tag or the path of a weights file"
        )
    tag_config: dict[str, Any] = open_clip.get_pretrained_cfg(architecture, tag)
    if bool(tag_config.get("quick_gelu")) != bool(config.get("quick_gelu")):
        raise ConfigError(
            f"{architecture} and its tag {tag} differ in their activation (quick_gelu): set embed.architecture to "
            f"{_meant(architecture + '-quickgelu', open_clip.list_models())}"
        )
    if _scale_of(tag_config) != colour_scale(architecture):
        raise ConfigError(
            f"tag {tag} of {architecture} wants {_scale_of(tag_config)}, other tags {colour_scale(architecture)}; "
            "an embed spec cannot tell them apart: take another tag"
        )
    return _downloaded(tag_config, f"{architecture}:{tag}")


def _downloaded(tag_config: dict[str, Any], name: str) -> bytes:
    import open_clip

    try:
        return Path(open_clip.download_pretrained(tag_config, prefer_hf_hub=True)).read_bytes()
    except Exception as error:  # hubs raise errors of several HTTP libraries
        raise ConfigError(
            f"the weights {name} could not be downloaded ({type(error).__name__}: {error}): check the network, or "
            "fetch the file elsewhere and set embed.pretrained to its path"
        ) from error


def _scale_of(tag_config: dict[str, Any]) -> ColourScale:
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    mean, std = tag_config.get("mean", OPENAI_DATASET_MEAN), tag_config.get("std", OPENAI_DATASET_STD)
    return ColourScale(mean=tuple(mean), std=tuple(std))


def _meant(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"
