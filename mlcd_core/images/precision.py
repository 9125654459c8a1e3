"""The number format of a model's products: weights and results stay float32, the device multiplies in fewer bits."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from mlcd_core.errors import ConfigError

Precision = Literal["float32", "bfloat16", "float16"]


def check_precision(precision: Precision, device: str) -> None:
    """Raise ConfigError for float16 on a CPU."""
    if precision == "float16" and torch.device(device).type == "cpu":
        raise ConfigError(
            "embed.precision is float16 and the device is the CPU, which has no fast float16 products; expected "
            "float32 or bfloat16: set embed.precision=bfloat16, or embed.device=cuda"
        )


def autocast(precision: Precision, device: str) -> AbstractContextManager[object]:
    """A context in which models multiply in ``precision``."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=getattr(torch, precision))
