"""The fused head at one rank: parity with the dense oracle, and what it refuses. Several ranks: tests/distributed."""

import pytest
import torch

from mlcd_core.errors import ConfigError, TrainingError
from mlcd_core.train import head as head_package
from mlcd_core.train.head import HeadSpec, ShardedHead, Tile
from tests.unit.train.head_cases import CASES, DIM, HeadCase, make_batch, parity


@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradients_equal_the_dense_reference(case):
    assert parity(case).worst <= 1e-10


def test_exported_names_exist_and_are_complete():
    assert sorted(head_package.__all__) == head_package.__all__
    assert all(hasattr(head_package, name) for name in head_package.__all__)


def test_float32_agrees_with_float64():
    case = HeadCase("mlcd", 8, 2_500, 0.1, scale=64.0, margin=0.3)
    features_BD, positives_BL = make_batch(case)
    losses = [
        ShardedHead(case.spec, case.num_classes, DIM, dtype=dtype)(features_BD, positives_BL, step=0).loss
        for dtype in (torch.float32, torch.float64)
    ]
    assert losses[0].dtype == torch.float32
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=1e-5)


def test_padding_rows_change_nothing():
    case = HeadCase("mlcd", 3, 64, 0.5)
    features_BD, positives_BL = make_batch(case)
    head = ShardedHead(case.spec, 64, DIM, dtype=torch.float64)
    alone = head(features_BD, positives_BL, step=1).loss
    padded = head(
        torch.cat([features_BD, torch.zeros(4, DIM)]), torch.cat([positives_BL, torch.full((4, 3), -1)]), step=1
    )
    assert torch.equal(alone, padded.loss)


def test_stats_are_the_mean_cosines():
    case = HeadCase("mlcd", 3, 64, 0.5)
    features_BD, positives_BL = make_batch(case)
    head = ShardedHead(case.spec, 64, DIM, dtype=torch.float64)
    stats = head(features_BD, positives_BL, step=1).stats
    unit_BD = torch.nn.functional.normalize(features_BD)
    cosine_BC = unit_BD @ torch.nn.functional.normalize(head.centers_CD).T
    positive, negative = [], []
    for row, labels in enumerate(positives_BL.tolist()):
        own = [label for label in labels if label >= 0]
        if own:
            positive += [float(cosine_BC[row, label]) for label in own]
            negative += [float(cosine_BC[row, c]) for c in head.sampled_ids(1).tolist() if c not in own]
    assert stats.positive_cosine == pytest.approx(sum(positive) / len(positive))
    assert stats.negative_cosine == pytest.approx(sum(negative) / len(negative))
    assert (stats.num_rows, stats.num_sampled) == (15, 32)


def test_a_step_moves_touched_centers_only():
    case = HeadCase("mlcd", 3, 2_500, 0.01)
    features_BD, positives_BL = make_batch(case)
    head = ShardedHead(case.spec, case.num_classes, DIM, dtype=torch.float64)
    before_CD = head.centers_CD.clone()
    head(features_BD, positives_BL, step=1).loss.backward()
    touched = torch.cat([head.sampled_ids(1), positives_BL[positives_BL >= 0]]).unique()
    assert torch.equal(head.touched_ids_T, touched)
    head.step(0.1)
    moved_C = (head.centers_CD != before_CD).any(dim=1)
    assert torch.equal(moved_C.nonzero()[:, 0], touched)


def test_no_tensor_of_batch_times_classes_is_kept_for_the_backward():
    case = HeadCase("mlcd", 3, 2_500, 1.0, tile=(16, 64))
    features_BD, positives_BL = make_batch(case, num_rows=256)
    head = ShardedHead(case.spec, case.num_classes, DIM, tile=Tile(*case.tile))
    sizes = []

    def seen(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        head(features_BD.float().requires_grad_(), positives_BL, step=0).loss.backward()
    assert max(sizes) <= case.num_classes * DIM


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([3, 64], "from 0 to 63"),
        ([-2, 3], "from 0 to 63"),
        ([5, 5], "each class once"),
    ],
)
def test_labels_that_do_not_fit_are_refused(row, message):
    head = ShardedHead(HeadSpec(), 64, DIM)
    with pytest.raises(TrainingError, match=message):
        head(torch.randn(2, DIM), torch.tensor([[1, 2], row]), step=0)


def test_softmax_with_two_positives_is_refused():
    head = ShardedHead(HeadSpec(loss="softmax"), 64, DIM)
    with pytest.raises(ConfigError, match="num_positive=1"):
        head(torch.randn(2, DIM), torch.tensor([[1, 2], [3, 4]]), step=0)


def test_initial_centers_do_not_touch_the_global_random_state():
    before = torch.random.get_rng_state()
    first, second = (ShardedHead(HeadSpec(), 64, DIM, seed=seed) for seed in (0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(first.centers_CD, second.centers_CD)
