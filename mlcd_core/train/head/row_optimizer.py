"""AdamW over rows of class centers: lazy, where only the centers that a step touches are read, moved and paid for.

Semantics of ``lazy``, for a row touched at some steps (sampled, or a positive of the global batch) and left alone at
the others:

- The moments m, v and the bias correction advance with the row's own count ``touches``, not with the global step.
  Between touches they rest: a row is never moved by old momentum.
- Decoupled weight decay belongs to every step. What an untouched row owes is product(1 - lr_t * wd) over the steps it
  missed; it is paid when the row is next read, by the prefix sum of log(1 - lr_t * wd) from ``last_step``, and by all
  rows in ``settle`` before the last save. When a debt is paid does not depend on the interval between checkpoints.
- A row that is touched at every step moves as in torch.optim.AdamW.

``dense`` is torch.optim.AdamW over all rows: those left alone have a gradient of zero, go on by their momentum, and
every step costs as much as there are rows.

Rows scattered over a big table cost more to move than to compute: they are added to in place, a piece at a time.

T touched rows, M of one piece, C rows, D dims.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

CenterOptimizer = Literal["lazy", "dense"]
# on the CPU: temporaries of 1 MiB at 256 dims stay in cache, 9.5 ms for 10,000 rows instead of 14
PIECE_ROWS = 1024


@dataclass(frozen=True)
class AdamWSettings:
    """How rows are moved."""

    kind: CenterOptimizer = "lazy"
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.0


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


class RowAdamW:
    """AdamW over the rows of ``center_CD``, which it owns and changes in place."""

    def __init__(self, center_CD: Tensor, settings: AdamWSettings) -> None:
        self.settings = settings
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
        rows_TD = state.center.index_select(0, rows_T)
        if self.settings.weight_decay > 0:
            owed_T = self.log_decay[-1] - self.log_decay[state.last_step[rows_T]]
            rows_TD.mul_(owed_T.exp().to(rows_TD.dtype)[:, None])
            state.center.index_copy_(0, rows_T, rows_TD)
        state.last_step[rows_T] = self.num_steps
        return rows_TD

    def step(self, rows_T: Tensor, gradient_TD: Tensor, lr: float) -> None:
        """One AdamW update; ``lazy`` rows must have been read since the last step, and all others owe this decay."""
        if self.settings.kind == "dense":
            gradient_CD = torch.zeros_like(self.state.center)
            gradient_CD[rows_T] = gradient_TD
            rows_T, gradient_TD = torch.arange(len(gradient_CD), device=rows_T.device), gradient_CD
        piece_rows = PIECE_ROWS if rows_T.device.type == "cpu" else max(1, len(rows_T))
        for rows_M, gradient_MD in zip(
            torch.split(rows_T, piece_rows), torch.split(gradient_TD, piece_rows), strict=True
        ):
            self._move(rows_M, gradient_MD, lr)
        decay = torch.log1p(torch.tensor(-lr * self.settings.weight_decay, dtype=torch.float64))
        self.log_decay = torch.cat([self.log_decay, self.log_decay[-1:] + decay.to(self.log_decay.device)])
        self.state.last_step[rows_T] = self.num_steps

    def settle(self) -> None:
        """Let every row pay its decay: before the weights are used outside of training."""
        self.read(torch.arange(len(self.state.center), device=self.state.center.device))

    def _move(self, rows_M: Tensor, gradient_MD: Tensor, lr: float) -> None:
        state, settings, dtype = self.state, self.settings, gradient_MD.dtype
        beta1, beta2 = settings.betas
        touches_M = state.touches.index_select(0, rows_M).add_(1)
        state.touches.index_copy_(0, rows_M, touches_M)
        m_MD, v_MD = state.m.index_select(0, rows_M), state.v.index_select(0, rows_M)
        # m + (1 - beta1) (g - m), and so for v; adding takes 0.6 times as long as writing over
        m_change_MD = (gradient_MD - m_MD).mul_(1 - beta1)
        v_change_MD = gradient_MD.square().sub_(v_MD).mul_(1 - beta2)
        state.m.index_add_(0, rows_M, m_change_MD)
        state.v.index_add_(0, rows_M, v_change_MD)
        step_size_M = (lr / _bias_correction(beta1, touches_M)).to(dtype)
        root_M = _bias_correction(beta2, touches_M).sqrt().to(dtype)
        denominator_MD = v_MD.add_(v_change_MD).sqrt_().div_(root_M[:, None]).add_(settings.eps)
        change_MD = m_MD.add_(m_change_MD).mul_(-step_size_M[:, None]).div_(denominator_MD)
        if settings.weight_decay > 0:
            change_MD.add_(state.center.index_select(0, rows_M), alpha=-lr * settings.weight_decay)
        state.center.index_add_(0, rows_M, change_MD)


def _bias_correction(beta: float, touches_T: Tensor) -> Tensor:
    return 1 - torch.tensor(beta, dtype=torch.float64, device=touches_T.device) ** touches_T
