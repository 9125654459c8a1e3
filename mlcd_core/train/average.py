"""The exponential moving average of a tower's weights: often a better encoder than the last step's.

Early weights are of no use, so the decay is warmed up: min(decay, (1 + t) / (10 + t)) at step t, the first being 0. It
is kept in float32 and is a function of the run, so a resumed run ends with the bytes of an undisturbed one.
"""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mlcd_core.train.sharded_tower import split_like


class TowerAverage:
    """The average ``state``, under the names of the tower's state dict."""

    def __init__(self, tower: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state: dict[str, Tensor] = {}
        self.restart(tower)

    def restart(self, tower: nn.Module) -> None:
        """Begin from the tower's weights."""
        self.state = {
            name: (tensor.float() if tensor.is_floating_point() else tensor).detach().clone()
            for name, tensor in tower.state_dict().items()
        }

    def load(self, saved: dict[str, Tensor]) -> None:
        """Take over a saved ``state``."""
        for name, tensor in self.state.items():
            tensor.copy_(split_like(saved[name], tensor))

    def update(self, tower: nn.Module, step: int) -> None:
        """Move towards the weights after step number ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = tower.state_dict()
        floats = [name for name, tensor in self.state.items() if tensor.is_floating_point()]
        move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        move([self.state[name] for name in floats], [current[name].to(torch.float32) for name in floats], None)
        for name in self.state.keys() - set(floats):  # counts of BatchNorm
            self.state[name].copy_(current[name])
