"""The head: class centers sharded over ranks, their loss, and their optimizer. One rank is the same code.

At a step a rank (1) sees all positives of the global batch, (2) draws this step's negatives among its own classes,
(3) reads the touched centers (sampled, or a positive it owns), (4) takes part in the fused loss, and after the
backward (5) updates just those centers. Centers are stored unnormalised and L2-normalised inside the loss, as are the
features.

G rows of the global batch, B those with a positive (as an argument: this rank's rows), D dims, C this rank's classes,
L label slots, T touched centers, S sampled classes.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from mlcd_core.errors import ConfigError, TrainingError
from mlcd_core.hashing import splitmix64
from mlcd_core.specs import HeadSpec
from mlcd_core.train.head.blocks import ClassBlocks
from mlcd_core.train.head.fused import LossCall, LossSums, Targets, Tile, fused_loss
from mlcd_core.train.head.row_optimizer import LazyAdamW, RowState
from mlcd_core.train.head.sampling import num_negatives, sampled_classes
from mlcd_core.train.ranks import Ranks

INIT_STD = 0.01
NO_CLASS = -1


@dataclass(frozen=True)
class HeadStats:
    """Means over the global batch, equal on all ranks, and the sizes behind them."""

    positive_cosine: float
    negative_cosine: float
    num_rows: int
    num_sampled: int
    num_touched: int  # by this rank


@dataclass(frozen=True)
class HeadOutput:
    """``loss`` is the mean over the global batch, equal on all ranks, connected to the features by autograd.

    features_BD: unit features of the global batch's rows that have a positive, detached, for watches.
    """

    loss: Tensor
    features_BD: Tensor
    sums: LossSums
    num_sampled: int
    num_touched: int

    @property
    def stats(self) -> HeadStats:
        """The sums as means; waits for the device."""
        sums = self.sums
        return HeadStats(
            positive_cosine=float(sums.positive_cosine / sums.num_positive.clamp(min=1)),
            negative_cosine=float(sums.negative_cosine / sums.num_negative.clamp(min=1)),
            num_rows=int(sums.num_rows),
            num_sampled=self.num_sampled,
            num_touched=self.num_touched,
        )


class ShardedHead:
    """The class centers of this rank and the discrimination loss over those of all ranks.

    Centers start from N(0, 0.01), seeded by class block, the same at any world size. Every rank must make the same
    calls. betas, eps and weight_decay are of the lazy AdamW (``row_optimizer``); tile bounds the logits held at once.
    """

    def __init__(
        self,
        spec: HeadSpec,
        num_classes: int,
        dim: int,
        *,
        group: dist.ProcessGroup | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        tile: Tile | None = None,
    ) -> None:
        self.spec = spec
        self.num_classes = num_classes
        self.dim = dim
        self.seed = seed
        self.device = torch.device(device)
        self.tile = tile or Tile()
        self.ranks = Ranks(group)
        self.partition = ClassBlocks(num_classes)
        self.blocks = self.partition.owned(self.ranks.rank, self.ranks.size)
        self.classes = self.partition.classes(self.blocks)
        centers = [_initial_centers(self.partition, block, dim, seed) for block in self.blocks]
        centers_CD = torch.cat(centers).to(dtype=dtype, device=self.device)
        self.optimizer = LazyAdamW(centers_CD, betas=betas, eps=eps, weight_decay=weight_decay)
        self._touched_T: Tensor | None = None
        self._centers_TD: Tensor | None = None

    @property
    def centers_CD(self) -> Tensor:
        """This rank's centers, unnormalised; rows left alone may still owe weight decay (``optimizer.settle``)."""
        return self.optimizer.state.center

    @property
    def class_ids_C(self) -> Tensor:
        """The class of each row of ``centers_CD``."""
        return torch.arange(self.classes.start, self.classes.stop, device=self.device)

    def sampled_ids(self, step: int) -> Tensor:
        """The S classes of all ranks that are negatives at ``step``, ascending; the same on every rank."""
        return self._sampled(range(self.partition.num_blocks), step)

    def __call__(self, features_BD: Tensor, positives_BL: Tensor, *, step: int) -> HeadOutput:
        """The loss of this step's global batch.

        features_BD, positives_BL: this rank's rows; int64 class ids, -1 pads; rows without a positive give no term.
        Forgets the step before.
        Raises TrainingError for a class outside [0, C), twice in a row, or ranks whose batches differ in shape.
        """
        self._check_shapes(features_BD, positives_BL, step)
        positives_GL = self.ranks.concatenated(positives_BL.to(self.device))
        _check_classes(positives_GL, self.num_classes)
        has_positive_G = (positives_GL != NO_CLASS).any(dim=1)
        touched_T, targets = self._targets(positives_GL, has_positive_G, self._sampled(self.blocks, step))
        centers_TD = self.optimizer.read(touched_T).requires_grad_()
        self._touched_T, self._centers_TD = touched_T, centers_TD
        loss, unit_BD, sums = fused_loss(
            functional.normalize(features_BD.to(centers_TD.dtype), dim=1),
            functional.normalize(centers_TD, dim=1),
            LossCall(targets, self.spec, self.ranks, self.tile),
        )
        num_sampled = num_negatives(self.num_classes, self.spec.negative_ratio)
        return HeadOutput(loss, unit_BD, sums, num_sampled, len(touched_T))

    @property
    def touched_ids_T(self) -> Tensor:
        """The classes of this rank that the last call touched, ascending."""
        assert self._touched_T is not None, "call the head first"
        return self._touched_T + self.classes.start

    @property
    def gradient_TD(self) -> Tensor:
        """Their centers' gradient after ``loss.backward()``; may be scaled in place (clipping) before ``step``."""
        assert self._centers_TD is not None, "call the head first"
        assert self._centers_TD.grad is not None, "run loss.backward() first"
        return self._centers_TD.grad

    def step(self, lr: float) -> None:
        """One update of the touched centers; needs a call and its ``loss.backward()`` before."""
        gradient_TD = self.gradient_TD
        assert self._touched_T is not None, "call the head first"
        self.optimizer.step(self._touched_T, gradient_TD, lr)
        self._touched_T = self._centers_TD = None

    def block_state(self, block: int) -> dict[str, Tensor]:
        """Views of one owned block's centers and optimizer state."""
        state: RowState = self.optimizer.state
        classes = self.partition.classes(range(block, block + 1))
        return state.rows(slice(classes.start - self.classes.start, classes.stop - self.classes.start))

    def _sampled(self, blocks: range, step: int) -> Tensor:
        num_sampled = num_negatives(self.num_classes, self.spec.negative_ratio)
        return sampled_classes(
            self.partition, blocks, num_sampled=num_sampled, seed=self.seed, step=step, device=self.device
        )

    def _targets(self, positives_GL: Tensor, has_positive_G: Tensor, sampled_S: Tensor) -> tuple[Tensor, Targets]:
        positives_BL = positives_GL[has_positive_G]
        owned_BL = (positives_BL >= self.classes.start) & (positives_BL < self.classes.stop)
        touched_T = torch.unique(torch.cat([sampled_S, positives_BL[owned_BL]]))
        targets = Targets(
            has_positive_G=has_positive_G,
            is_positive_BL=positives_BL != NO_CLASS,
            touched_BL=_positions(touched_T, positives_BL),
            sampled_BL=_positions(sampled_S, positives_BL),
            touched_S=torch.searchsorted(touched_T, sampled_S),
        )
        return touched_T - self.classes.start, targets

    def _check_shapes(self, features_BD: Tensor, positives_BL: Tensor, step: int) -> None:
        if self.spec.loss == "softmax" and positives_BL.shape[1] != 1:
            raise ConfigError(
                f"the loss softmax got {positives_BL.shape[1]} labels per row, it is for 1; "
                "set train.num_positive=1, or train.loss=mlcd"
            )
        assert features_BD.shape == (len(positives_BL), self.dim), f"features are {tuple(features_BD.shape)}"
        own = torch.tensor([[*positives_BL.shape, step]], device=self.device)
        shapes = self.ranks.concatenated(own)
        if bool((shapes != own).any()):
            raise TrainingError(
                f"ranks came with different [rows, labels, step]: {shapes.tolist()}; "
                "expected the same on every rank: pad short batches with labels of -1"
            )


def _initial_centers(partition: ClassBlocks, block: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(int(splitmix64(seed, block)))
    return torch.randn(len(partition.classes(range(block, block + 1))), dim, generator=generator) * INIT_STD


def _positions(sorted_ids: Tensor, positives_BL: Tensor) -> Tensor:
    """Where each positive stands in ``sorted_ids``, -1 where it does not."""
    if len(sorted_ids) == 0:
        return torch.full_like(positives_BL, -1)
    position_BL = torch.searchsorted(sorted_ids, positives_BL).clamp(max=len(sorted_ids) - 1)
    return torch.where(sorted_ids[position_BL] == positives_BL, position_BL, -1)


def _check_classes(positives_GL: Tensor, num_classes: int) -> None:
    outside_GL = (positives_GL < NO_CLASS) | (positives_GL >= num_classes)
    sorted_GL = positives_GL.sort(dim=1).values
    twice_GL = (sorted_GL[:, 1:] == sorted_GL[:, :-1]) & (sorted_GL[:, 1:] != NO_CLASS)
    if not bool(outside_GL.any() | twice_GL.any()):  # one wait for the device
        return
    if bool(outside_GL.any()):
        row = int(outside_GL.any(dim=1).nonzero()[0])
        problem = f"the classes {positives_GL[row].tolist()}, expected ids from 0 to {num_classes - 1}, or -1 as a pad"
    else:
        row = int(twice_GL.any(dim=1).nonzero()[0])
        problem = f"the classes {positives_GL[row].tolist()}, expected each class once"
    raise TrainingError(
        f"row {row} of the global batch has {problem}; the label files do not fit this head: run the label stage again"
    )
