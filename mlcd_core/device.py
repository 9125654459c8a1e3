"""Which device a stage computes on."""

from mlcd_core.errors import ConfigError


def check_search(key: str, search: str, device: str) -> None:
    """Raise ConfigError, before workers are started, when the search of setting ``key`` cannot run on ``device``."""
    if search in ("float16", "triton"):
        import torch

        if device == "cpu" or not torch.cuda.is_available():
            raise ConfigError(f"{key} is {search}, which needs a GPU, and there is none: set it to auto")
    if search == "int8":
        import torch

        if not torch.cpu._is_vnni_supported():
            raise ConfigError(f"{key} is int8, which this CPU cannot multiply exactly (VNNI): set it to auto")


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
