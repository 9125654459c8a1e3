"""Batches and heads for the parity tests, and the comparison of a sharded head with the dense reference."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mlcd_core.train.head import HeadSpec, ShardedHead, Tile, reference_loss
from mlcd_core.train.ranks import Ranks

DIM = 12


@dataclass(frozen=True)
class HeadCase:
    loss: str
    num_positive: int
    num_classes: int
    negative_ratio: float
    tile: tuple[int, int] = (4096, 4096)
    batch: str = "pads"  # pads | one_rank | shared | empty
    scale: float = 16.0
    margin: float = 0.1
    margin_kind: str = "cosface"
    sampling: str = "independent"
    weighting: str = "none"

    @property
    def spec(self) -> HeadSpec:
        return HeadSpec(
            loss=self.loss,
            negative_ratio=self.negative_ratio,
            scale=self.scale,
            margin=self.margin,
            margin_kind=self.margin_kind,
            sampling=self.sampling,
            negative_weighting=self.weighting,
        )


@dataclass(frozen=True)
class Parity:
    """Relative differences of a head and the reference."""

    loss: float
    features: float
    centers: float
    threshold: float

    @property
    def worst(self) -> float:
        return max(self.loss, self.features, self.centers, self.threshold)


LOSSES = ("mlcd", "mlc", "softmax", "softmax_masked", "mlcd_bias")
MARGINS = ("cosface", "arcface", "none")

CASES = [
    HeadCase("mlcd", 1, 5, 1.0),
    # one negative, often a row's own positive
    *(HeadCase(loss, 1 if loss == "softmax" else 3, 5, 0.1) for loss in LOSSES),
    HeadCase("mlcd", 8, 64, 0.1, batch="one_rank"),
    HeadCase("mlcd", 8, 64, 1.0, batch="shared", tile=(1, 64)),
    HeadCase("mlcd", 8, 2_500, 0.1, tile=(8, 50)),
    HeadCase("mlcd", 8, 2_500, 1.0, scale=64.0, margin=0.3, tile=(16, 333)),
    HeadCase("mlcd", 8, 100_000, 0.1, scale=64.0, margin=0.3),
    HeadCase("mlcd", 8, 100_000, 1.0, scale=64.0, margin=0.3, margin_kind="arcface"),
    HeadCase("mlcd", 3, 64, 0.1, weighting="inverse_rate"),
    HeadCase("mlcd", 8, 2_500, 0.01, sampling="partial_fc"),  # more positives than its share
    HeadCase("mlcd", 8, 2_500, 0.1, sampling="partial_fc", batch="one_rank"),
    HeadCase("softmax", 1, 64, 0.1, batch="one_rank"),
    HeadCase("softmax", 1, 64, 1.0, batch="shared"),
    *(HeadCase(loss, 1 if loss == "softmax" else 3, 64, 1.0, batch="empty") for loss in LOSSES),
    *(
        HeadCase(loss, num_positive, 64, ratio, margin_kind=kind, tile=(5, 7), weighting="inverse_rate")
        for loss in LOSSES
        for kind in MARGINS
        for num_positive, ratio in ((1, 1.0), (3, 0.1), (8, 1.0))
        if loss != "softmax" or num_positive == 1
    ),
]


def make_batch(case: HeadCase, num_rows: int = 16) -> tuple[Tensor, Tensor]:
    """The global batch: features in float64 and positives, row 2 without any, row 3 with pads between classes."""
    generator = torch.Generator().manual_seed(7)
    features_BD = torch.randn(num_rows, DIM, dtype=torch.float64, generator=generator)
    keys_BC = torch.rand(num_rows, case.num_classes, generator=generator)
    if case.batch == "one_rank":
        # all positives in the first class blocks, which the first rank owns at any tested world size
        keys_BC[:, : case.num_classes // 4] += 1
    if case.batch == "shared":
        keys_BC[:] = keys_BC[0]
    positives_BL = keys_BC.topk(case.num_positive, dim=1).indices
    positives_BL[2] = -1
    if case.num_positive > 1:
        positives_BL[3, 1] = -1
        positives_BL[4, 1:] = -1
    if case.batch == "empty":
        positives_BL[:] = -1
    return features_BD, positives_BL


def parity(case: HeadCase, group=None, step: int = 3) -> Parity:
    """Run the head on this rank's rows and compare loss and gradients with the reference on the whole batch."""
    ranks = Ranks(group)
    features_BD, positives_BL = make_batch(case)
    head = ShardedHead(
        case.spec, case.num_classes, DIM, group=group, seed=5, dtype=torch.float64, tile=Tile(*case.tile)
    )
    own = slice(*(torch.tensor([ranks.rank, ranks.rank + 1]) * (len(features_BD) // ranks.size)).tolist())
    own_features_BD = features_BD[own].clone().requires_grad_()
    output = head(own_features_BD, positives_BL[own], step=step)
    # a factor on the loss must reach every gradient
    (3 * output.loss).backward()

    whole = ShardedHead(case.spec, case.num_classes, DIM, seed=5, dtype=torch.float64, group=_alone(group))
    centers_CD = whole.centers_CD.clone().requires_grad_()
    all_features_BD = features_BD.clone().requires_grad_()
    threshold = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    expected = reference_loss(
        all_features_BD,
        centers_CD,
        positives_BL,
        case.spec,
        negatives_S=head.sampled_ids(step, positives_BL),
        threshold=threshold,
    )
    (3 * expected).backward()
    gradient_CD = torch.zeros_like(head.centers_CD)
    gradient_CD[head.touched_ids_T - head.classes.start] = head.gradient_TD
    return Parity(
        loss=relative(output.loss.detach(), expected.detach()),
        features=relative(own_features_BD.grad, all_features_BD.grad[own], scale=all_features_BD.grad),
        centers=relative(gradient_CD, centers_CD.grad[head.class_ids_C], scale=centers_CD.grad),
        threshold=relative(head.threshold_gradient[0], threshold.grad) if case.loss == "mlcd_bias" else 0.0,
    )


def relative(found: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """Norm of the difference over the norm of ``scale``; a zero must be an exact zero."""
    assert found.shape == expected.shape
    size = float((expected if scale is None else scale).norm())
    difference = float((found - expected).norm())
    return difference / size if size > 0 else difference


def _alone(group):
    """A process group of this rank only, or None where nothing is initialised."""
    if group is None:
        return None
    groups = [torch.distributed.new_group([rank]) for rank in range(torch.distributed.get_world_size(group))]
    return groups[torch.distributed.get_rank(group)]
