"""The learning rate over a run: a linear warm-up, then a decay to zero; a function of the step alone."""

import math
from collections.abc import Callable

from mlcd_core.specs import TrainSpec

# of t, the share of the steps after warm-up that are done
DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
    "poly": lambda t: (1 - t) ** 2,  # as the authors' later code
}


def rate_share(spec: TrainSpec, step: int, num_steps: int) -> float:
    """Share of the peak learning rates at ``step``; the decay would reach 0 at ``num_steps``."""
    num_warmup = round(spec.warmup_share * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    return DECAYS[spec.schedule]((step - num_warmup) / max(1, num_steps - num_warmup))
