"""The four collectives k-means needs; without a process group they are those of a world of one rank.

Gloo says that a rank is gone by a RuntimeError in the ranks that wait for it; here that is a WorkerLostError, so that
nobody takes it for a defect.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mlcd_core.errors import WorkerLostError


@dataclass(frozen=True)
class Ranks:
    """The ranks of ``group``, or this process alone. Every rank calls the same methods in the same order.

    Each method raises WorkerLostError when another rank died or the group's timeout is over.
    """

    group: dist.ProcessGroup | None

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that computes what is broadcast."""
        return self.rank == 0

    @property
    def rank(self) -> int:
        """Which of them this is."""
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def size(self) -> int:
        """R, the number of ranks."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    def sum(self, value: Tensor) -> Tensor:
        """Sum over ranks, in place, known to all."""
        if self.group is not None:
            with _others():
                dist.all_reduce(value, group=self.group)
        return value

    def sum_on_first(self, value: Tensor) -> Tensor:
        """Sum over ranks, in place, known to the first rank; what the others hold is undefined."""
        if self.group is not None:
            with _others():
                dist.reduce(value, group_dst=0, group=self.group)
        return value

    def broadcast(self, value: Tensor) -> Tensor:
        """The first rank's value, in place, on all."""
        if self.group is not None:
            with _others():
                dist.broadcast(value, group_src=0, group=self.group)
        return value

    def gather(self, value: Tensor) -> list[Tensor]:
        """Every rank's tensor, all of one shape, in rank order, known to all."""
        if self.group is None:
            return [value]
        values = [torch.empty_like(value) for _ in range(self.size)]
        with _others():
            dist.all_gather(values, value.contiguous(), group=self.group)
        return values


@contextmanager
def _others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise WorkerLostError(
            f"another k-means worker died or hangs ({str(error)[:200]}); run again, saved links are kept"
        ) from error
