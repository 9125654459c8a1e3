"""What open_clip's model files say of an architecture, read without importing open_clip, which takes seconds and torch.

Whoever plans a stage asks here. Weights are read, and everything is checked again, by whoever builds the model.
"""

import difflib
import importlib.util
import json
from pathlib import Path
from typing import Any

from mlcd_core.errors import ConfigError


def open_clip_dim(architecture: str) -> int:
    """Embedding dims of an architecture. Raises ConfigError for one that open_clip does not ship."""
    config = _shipped_config(architecture)
    if config is None:
        known = sorted(path.stem for path in _config_folder().glob("*.json"))
        near = difflib.get_close_matches(architecture, known, n=3)
        meant = f"did you mean {' or '.join(near)}?" if near else f"open_clip here has {len(known)} models"
        raise ConfigError(f"embed.architecture={architecture!r} is no open_clip model; {meant}")
    return int(config["embed_dim"])


def check_text_tower(architecture: str, *, captions: bool) -> None:
    """Raise ConfigError for text towers, or with ``captions`` tokenizers, that Hugging Face would have to deliver.

    An architecture that open_clip does not ship is not judged here.
    """
    config = _shipped_config(architecture)
    text: dict[str, Any] = config["text_cfg"] if config else {}
    if "hf_model_name" in text:
        raise ConfigError(
            f"embed.architecture={architecture} has the text tower {text['hf_model_name']} of Hugging Face, whose "
            "configuration would be downloaded; expected an architecture that open_clip holds whole: "
            "set embed.architecture=ViT-B-32, for example"
        )
    if captions and "hf_tokenizer_name" in text:
        raise ConfigError(
            f"embed.feature=image_text_mean with embed.architecture={architecture}, whose tokenizer "
            f"{text['hf_tokenizer_name']} would be downloaded from Hugging Face; expected an architecture with "
            "open_clip's own tokenizer: set embed.feature=image, or embed.architecture=ViT-B-32, for example"
        )


def _shipped_config(architecture: str) -> dict[str, Any] | None:
    path = _config_folder() / f"{architecture}.json"
    if not architecture or not path.is_file():
        return None
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def _config_folder() -> Path:
    package = importlib.util.find_spec("open_clip")
    return Path(package.origin or "").parent / "model_configs" if package else Path()
