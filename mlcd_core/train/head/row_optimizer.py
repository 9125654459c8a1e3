"""Lazy AdamW: only the centers that a step touches are read, moved and paid for.

Semantics, for a row touched at some steps (sampled, or a positive of the global batch) and left alone at the others:

- The moments m, v and the bias correction advance with the row's own count ``touches``, not with the global step.
  Between touches they rest: a row is never moved by old momentum.
- Decoupled weight decay belongs to every step. What an untouched row owes is product(1 - lr_t * wd) over the steps it
  missed; it is paid when the row is next read, by the prefix sum of log(1 - lr_t * wd) from ``last_step``, and by all
  rows in ``settle`` before the last save. When a debt is paid does not depend on the interval between checkpoints.
- A row that is touched at every step moves as in torch.optim.AdamW.

T touched rows, C rows, D dims.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowState:
    """The rows and what is kept beside them: the moments, and per row the touches and the last settled step."""

    center: Tensor
    m: Tensor
    v: Tensor
    touches: Tensor
    last_step: Tensor

    def rows(self, rows: slice) -> dict[str, Tensor]:
        """Views of a range of rows, by name."""
        return {name: tensor[rows] for name, tensor in vars(self).items()}


class LazyAdamW:
    """AdamW over the rows of ``center_CD``, which it owns and changes in place."""

    def __init__(self, center_CD: Tensor, *, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        count_C = torch.zeros(len(center_CD), dtype=torch.int64, device=center_CD.device)
        zeros_CD = torch.zeros_like(center_CD)
        self.state = RowState(center_CD, zeros_CD, zeros_CD.clone(), count_C, count_C.clone())
        # entry n: sum of log(1 - lr * wd) over the first n steps
        self.log_decay = torch.zeros(1, dtype=torch.float64, device=center_CD.device)

    @property
    def num_steps(self) -> int:
        """Steps taken so far."""
        return len(self.log_decay) - 1

    def read(self, rows_T: Tensor) -> Tensor:
        """A copy of the rows, after they have paid the decay of the steps they missed."""
        state = self.state
        owed_T = self.log_decay[-1] - self.log_decay[state.last_step[rows_T]]
        rows_TD = state.center[rows_T] * owed_T.exp().to(state.center.dtype)[:, None]
        state.center[rows_T] = rows_TD
        state.last_step[rows_T] = self.num_steps
        return rows_TD

    def step(self, rows_T: Tensor, gradient_TD: Tensor, lr: float) -> None:
        """One AdamW update of the rows; they must have been read since the last step. All others owe this decay."""
        state, (beta1, beta2) = self.state, self.betas
        touches_T = state.touches[rows_T] + 1
        m_TD = state.m[rows_T].lerp_(gradient_TD, 1 - beta1)
        v_TD = state.v[rows_T].mul_(beta2).addcmul_(gradient_TD, gradient_TD, value=1 - beta2)
        step_size_T = lr / _bias_correction(beta1, touches_T)
        root_T = _bias_correction(beta2, touches_T).sqrt()
        dtype = m_TD.dtype
        denominator_TD = v_TD.sqrt() / root_T.to(dtype)[:, None] + self.eps
        center_TD = state.center[rows_T] * (1 - lr * self.weight_decay)
        state.center[rows_T] = center_TD - step_size_T.to(dtype)[:, None] * m_TD / denominator_TD
        state.m[rows_T] = m_TD
        state.v[rows_T] = v_TD
        state.touches[rows_T] = touches_T
        self.log_decay = torch.cat([self.log_decay, self.log_decay[-1:] + _log_one_minus(lr * self.weight_decay)])
        state.last_step[rows_T] = self.num_steps

    def settle(self) -> None:
        """Let every row pay its decay: before the weights are used outside of training."""
        self.read(torch.arange(len(self.state.center), device=self.state.center.device))


def _bias_correction(beta: float, touches_T: Tensor) -> Tensor:
    return 1 - torch.tensor(beta, dtype=torch.float64, device=touches_T.device) ** touches_T


def _log_one_minus(share: float) -> float:
    return float(torch.log1p(torch.tensor(-share, dtype=torch.float64)))
