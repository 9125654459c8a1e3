"""Which device a stage computes on."""

from mlcd_core.errors import ConfigError


def pick_device(name: str) -> str:
    """``auto`` becomes cuda where there is one, else cpu. Raises ConfigError for a device that is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch finds no CUDA device; set it to cpu or auto")
    return name
