"""The few collectives that training needs, with one rank as the plain case.

Without ``torch.distributed`` a process is rank 0 of 1 and every collective returns its argument, so the loop and the
head are written once. All ranks must call the same methods in the same order, with tensors of equal shape.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """This process among the ranks of ``group``; ``None`` is the default group where one is initialised."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.size = dist.get_world_size(group) if dist.is_initialized() else 1
        self.rank = dist.get_rank(group) if dist.is_initialized() else 0

    def concatenated(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks joined along dim 0, in rank order."""
        if self.size == 1:
            return tensor
        joined = tensor.new_empty((self.size * tensor.shape[0], *tensor.shape[1:]))
        dist.all_gather_into_tensor(joined, tensor.contiguous(), group=self._group)
        return joined

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place where there are several."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self._group)
        return tensor

    def scattered_sum(self, tensor: Tensor) -> Tensor:
        """This rank's slice, along dim 0, of the sum over ranks."""
        if self.size == 1:
            return tensor
        own = tensor.new_empty((tensor.shape[0] // self.size, *tensor.shape[1:]))
        dist.reduce_scatter_tensor(own, tensor.contiguous(), group=self._group)
        return own

    def gathered(self, value: Any) -> list[Any]:
        """A small Python value of each rank, in rank order; for records, not for tensors."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        return self.gathered(value if self.rank == 0 else None)[0]

    def told_by_first(self, question: Callable[[], bool], device: torch.device) -> bool:
        """Rank 0's answer, on every rank; one tiny sum, and none at one rank."""
        if self.size == 1:
            return question()
        answer = torch.tensor([self.rank == 0 and question()], dtype=torch.int32, device=device)
        return bool(self.summed(answer))
