"""The head: class centers sharded over ranks, their loss, and their optimizer. One rank is the same code.

At a step a rank (1) sees all positives of the global batch, (2) draws this step's negatives among its own classes,
(3) reads the touched centers (sampled, or a positive it owns), (4) takes part in the fused loss, and after the
backward (5) updates just those centers. Centers are stored unnormalised and L2-normalised inside the loss, as are the
features. ``begin`` is (1) to (3), ``loss`` is (4) for some or all rows, ``step`` is (5).

G rows of the global batch, B those with a positive (as an argument: this rank's rows), D dims, C this rank's classes,
L label slots, T touched centers, S sampled classes, W ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from mlcd_core.errors import TrainingError
from mlcd_core.hashing import splitmix64
from mlcd_core.specs import HeadSpec, check_head_spec
from mlcd_core.train.head.blocks import ClassBlocks
from mlcd_core.train.head.fused import LossCall, LossSums, Targets, Tile, fused_loss
from mlcd_core.train.head.row_optimizer import AdamWSettings, RowAdamW
from mlcd_core.train.head.sampling import num_negatives, sampled_classes
from mlcd_core.train.ranks import Ranks

INIT_STD = 0.01
NO_CLASS = -1
ALL_ROWS = slice(None)

InitialCenters = Callable[[range], Tensor]


@dataclass(frozen=True)
class HeadStats:
    """Means over the global batch, equal on all ranks, and the sizes behind them."""

    positive_cosine: float
    negative_cosine: float
    num_rows: int
    num_sampled: int
    sampled_share: float  # of the classes: r, and with partial_fc often more
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
    sampled_share: float
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
            sampled_share=self.sampled_share,
            num_touched=self.num_touched,
        )


@dataclass(frozen=True)
class _Step:
    """What ``begin`` finds out about a step: its global batch, and the centers that this rank lends to it."""

    positives_WBL: Tensor
    sampled_S: Tensor
    touched_T: Tensor
    centers_TD: Tensor
    num_rows: Tensor  # with a positive
    num_sampled: int  # by all ranks


class ShardedHead:
    """The class centers of this rank and the discrimination loss over those of all ranks.

    ``initial_centers`` gives the centers [n, D] of a range of classes at step 0; by default they are N(0, 0.01), seeded
    by class block, the same at any world size. Every rank must make the same calls. ``tile`` bounds the logits held at
    once. Of the loss ``mlcd_bias`` the head also learns a threshold, equal on all ranks.
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
        adamw: AdamWSettings | None = None,
        initial_centers: InitialCenters | None = None,
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
        adamw = adamw or AdamWSettings()
        if initial_centers is None:
            centers_CD = torch.cat([self._normal_centers(block) for block in self.blocks])
        else:
            centers_CD = initial_centers(self.classes)
        self.optimizer = RowAdamW(centers_CD.to(dtype=dtype, device=self.device), adamw)
        self.threshold_optimizer: RowAdamW | None = None
        self._threshold: Tensor | None = None
        if spec.loss == "mlcd_bias":
            without_decay = AdamWSettings(betas=adamw.betas, eps=adamw.eps)
            self.threshold_optimizer = RowAdamW(torch.zeros(1, 1, dtype=dtype, device=self.device), without_decay)
        self._step: _Step | None = None

    @property
    def centers_CD(self) -> Tensor:
        """This rank's centers, unnormalised; rows left alone may still owe weight decay (``optimizer.settle``)."""
        return self.optimizer.state.center

    @property
    def class_ids_C(self) -> Tensor:
        """The class of each row of ``centers_CD``."""
        return torch.arange(self.classes.start, self.classes.stop, device=self.device)

    @property
    def threshold(self) -> float:
        """The learned cosine between positives and negatives; 0 for all losses but ``mlcd_bias``."""
        return float(self.threshold_optimizer.state.center) if self.threshold_optimizer else 0.0

    def sampled_ids(self, step: int, positives_BL: Tensor | None = None) -> Tensor:
        """The classes of all ranks that are negatives at ``step``, ascending; the same on every rank.

        positives_BL: of the whole global batch; needed by the sampling ``partial_fc``.
        """
        return self._sampled(range(self.partition.num_blocks), step, positives_BL)

    def __call__(self, features_BD: Tensor, positives_BL: Tensor, *, step: int) -> HeadOutput:
        """``begin`` and the ``loss`` of all rows."""
        self.begin(positives_BL, step=step)
        return self.loss(features_BD)

    def begin(self, positives_BL: Tensor, *, step: int) -> None:
        """Start a step and forget the one before: draw its negatives, read the centers that it touches.

        positives_BL: of this rank's rows; int64 class ids, -1 pads; rows without a positive give no term.
        Raises TrainingError for a class outside [0, C), twice in a row, or ranks whose batches differ in shape.
        """
        self._check_shapes(positives_BL, step)
        check_head_spec(self.spec, num_positive=positives_BL.shape[1])
        positives_GL = self.ranks.concatenated(positives_BL.to(self.device))
        _check_classes(positives_GL, self.num_classes)
        sampled_S = self._sampled(self.blocks, step, positives_GL)
        owned = positives_GL[(positives_GL >= self.classes.start) & (positives_GL < self.classes.stop)]
        touched_T = torch.unique(torch.cat([sampled_S, owned]))
        centers_TD = self.optimizer.read(touched_T - self.classes.start).requires_grad_()
        if self.threshold_optimizer:
            self._threshold = self.threshold_optimizer.read(self._first_row()).requires_grad_()
        self._step = _Step(
            positives_WBL=positives_GL.view(self.ranks.size, *positives_BL.shape),
            sampled_S=sampled_S,
            touched_T=touched_T,
            centers_TD=centers_TD,
            num_rows=(positives_GL != NO_CLASS).any(dim=1).sum(),
            num_sampled=self._num_sampled(sampled_S),
        )

    def loss(self, features_BD: Tensor, rows: slice = ALL_ROWS) -> HeadOutput:
        """The part of the step's mean loss that ``rows``, the same slice on every rank, have in it.

        features_BD: of these rows. The parts of all rows sum to the mean over the global batch, and their backwards
        add up likewise, so a batch may come in pieces.
        """
        current = self._current()
        positives_GL = current.positives_WBL[:, rows].flatten(0, 1)
        assert features_BD.shape == (len(positives_GL) // self.ranks.size, self.dim), f"{tuple(features_BD.shape)}"
        call = LossCall(
            targets=_targets(positives_GL, current.touched_T, current.sampled_S),
            spec=self.spec,
            ranks=self.ranks,
            tile=self.tile,
            mean_rows=current.num_rows.clamp(min=1),
            negative_weight=self._negative_weight(current.num_sampled),
        )
        unit_BD = functional.normalize(features_BD.to(current.centers_TD.dtype), dim=1)
        loss, unit_GD, sums = fused_loss(unit_BD, current.centers_TD, self._threshold, call)
        return HeadOutput(
            loss=loss,
            features_BD=unit_GD,
            sums=sums,
            num_sampled=current.num_sampled,
            sampled_share=current.num_sampled / self.num_classes,
            num_touched=len(current.touched_T),
        )

    @property
    def touched_ids_T(self) -> Tensor:
        """The classes of this rank that the step touches, ascending."""
        return self._current().touched_T

    @property
    def gradient_TD(self) -> Tensor:
        """Their centers' gradient after ``loss.backward()``."""
        gradient_TD = self._current().centers_TD.grad
        assert gradient_TD is not None, "run loss.backward() first"
        return gradient_TD

    @property
    def threshold_gradient(self) -> Tensor:
        """That of the threshold, [1, 1]; equal on all ranks. Only for ``mlcd_bias``."""
        assert self._threshold is not None, "only mlcd_bias has a threshold"
        assert self._threshold.grad is not None, "run loss.backward() first"
        return self._threshold.grad

    def gradient_square_sum(self) -> Tensor:
        """The squared norm of the gradients of all ranks' centers, and of the threshold; float64."""
        square_sum = self.ranks.summed(self.gradient_TD.double().square().sum())
        if self._threshold is not None:
            square_sum = square_sum + self.threshold_gradient.double().square().sum()
        return square_sum

    def scale_gradients(self, factor: float) -> None:
        """Multiply them, for clipping."""
        self.gradient_TD.mul_(factor)
        if self._threshold is not None:
            self.threshold_gradient.mul_(factor)

    def step(self, lr: float) -> None:
        """One update of the touched centers; needs a ``loss`` and its ``backward()`` before."""
        self.optimizer.step(self._current().touched_T - self.classes.start, self.gradient_TD, lr)
        if self.threshold_optimizer:
            self.threshold_optimizer.step(self._first_row(), self.threshold_gradient, lr)
        self._step = self._threshold = None

    def block_state(self, block: int) -> dict[str, Tensor]:
        """Views of one owned block's centers and optimizer state."""
        classes = self._block_classes(block)
        return self.optimizer.state.rows(slice(classes.start - self.classes.start, classes.stop - self.classes.start))

    def common_state(self) -> dict[str, Tensor]:
        """What all ranks hold alike: the decay of past steps, and the threshold with its moments."""
        common = {"log_decay": self.optimizer.log_decay}
        if self.threshold_optimizer:
            rows = self.threshold_optimizer.state.rows(ALL_ROWS)
            common |= {f"threshold.{name}": tensor for name, tensor in rows.items()}
        return common

    def load_common_state(self, common: dict[str, Tensor]) -> None:
        """Take over what ``common_state`` gave."""
        self.optimizer.log_decay = common["log_decay"].to(self.device)
        if self.threshold_optimizer:
            for name, tensor in self.threshold_optimizer.state.rows(ALL_ROWS).items():
                tensor.copy_(common[f"threshold.{name}"])
            self.threshold_optimizer.log_decay = torch.zeros_like(self.optimizer.log_decay)  # as many steps, no decay

    def _current(self) -> _Step:
        assert self._step is not None, "call begin first"
        return self._step

    def _first_row(self) -> Tensor:
        return torch.zeros(1, dtype=torch.int64, device=self.device)

    def _block_classes(self, block: int) -> range:
        return self.partition.classes(range(block, block + 1))

    def _normal_centers(self, block: int) -> Tensor:
        generator = torch.Generator().manual_seed(int(splitmix64(self.seed, block)))
        return torch.randn(len(self._block_classes(block)), self.dim, generator=generator) * INIT_STD

    def _num_sampled(self, sampled_S: Tensor) -> int:
        if self.spec.sampling == "independent":
            return num_negatives(self.num_classes, self.spec.negative_ratio)
        return int(self.ranks.summed(torch.tensor(len(sampled_S), device=self.device)))

    def _negative_weight(self, num_sampled: int) -> float:
        return self.num_classes / num_sampled if self.spec.negative_weighting == "inverse_rate" else 1.0

    def _sampled(self, blocks: range, step: int, positives: Tensor | None) -> Tensor:
        assert self.spec.sampling == "independent" or positives is not None, "partial_fc needs the batch's positives"
        return sampled_classes(
            self.partition,
            blocks,
            num_sampled=num_negatives(self.num_classes, self.spec.negative_ratio),
            seed=self.seed,
            step=step,
            device=self.device,
            positives=positives if self.spec.sampling == "partial_fc" else None,
        )

    def _check_shapes(self, positives_BL: Tensor, step: int) -> None:
        own = torch.tensor([[*positives_BL.shape, step]], device=self.device)
        shapes = self.ranks.concatenated(own)
        if bool((shapes != own).any()):
            raise TrainingError(
                f"ranks came with different [rows, labels, step]: {shapes.tolist()}; "
                "expected the same on every rank: pad short batches with labels of -1"
            )


def combined(outputs: Sequence[HeadOutput]) -> HeadOutput:
    """The output of a step from those of its parts: the losses and sums add up; no graph."""
    return replace(
        outputs[0],
        loss=torch.stack([output.loss.detach() for output in outputs]).sum(),
        features_BD=torch.cat([output.features_BD for output in outputs]),
        sums=sum((output.sums for output in outputs[1:]), start=outputs[0].sums),
    )


def _targets(positives_GL: Tensor, touched_T: Tensor, sampled_S: Tensor) -> Targets:
    has_positive_G = (positives_GL != NO_CLASS).any(dim=1)
    positives_BL = positives_GL[has_positive_G]
    return Targets(
        has_positive_G=has_positive_G,
        is_positive_BL=positives_BL != NO_CLASS,
        touched_BL=_positions(touched_T, positives_BL),
        sampled_BL=_positions(sampled_S, positives_BL),
        touched_S=torch.searchsorted(touched_T, sampled_S),
    )


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
