"""The fused head at one rank: parity with the dense oracle, and what it refuses. Several ranks: tests/distributed."""

import pytest
import torch

from mlcd_core.errors import ConfigError, TrainingError
from mlcd_core.train import head as head_package
from mlcd_core.train.head import HeadSpec, ShardedHead, Tile, combined
from mlcd_core.train.head.losses import arcface
from tests.unit.train.head_cases import CASES, DIM, HeadCase, make_batch, parity, relative

F64 = torch.float64


@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradients_equal_the_dense_reference(case):
    assert parity(case).worst <= 1e-10


def test_exported_names_exist_and_are_complete():
    assert sorted(head_package.__all__) == head_package.__all__
    assert all(hasattr(head_package, name) for name in head_package.__all__)


def gradients(case, dtype):
    """Those of features and touched centers at one rank, as one float64 vector."""
    features_BD, positives_BL = make_batch(case)
    head = ShardedHead(case.spec, case.num_classes, DIM, seed=5, dtype=dtype, tile=Tile(*case.tile))
    features_BD = features_BD.to(dtype).requires_grad_()
    head(features_BD, positives_BL, step=3).loss.backward()
    return torch.cat([features_BD.grad.flatten(), head.gradient_TD.flatten()]).double()


@pytest.mark.parametrize("case", [case for case in CASES if case.batch != "empty"], ids=str)
def test_gradients_in_float32_are_near_those_in_float64(case):
    assert relative(gradients(case, torch.float32), gradients(case, torch.float64)) <= 5e-5


@pytest.mark.parametrize("loss", ["mlcd", "mlcd_bias", "softmax_masked"])
def test_a_batch_in_pieces_gives_the_loss_and_gradients_of_the_whole(loss):
    case = HeadCase(loss, 3, 64, 0.3)
    features_BD, positives_BL = make_batch(case)
    whole, pieces = (ShardedHead(case.spec, 64, DIM, dtype=torch.float64) for _ in range(2))
    all_features_BD, parted_BD = (features_BD.clone().requires_grad_() for _ in range(2))
    expected = whole(all_features_BD, positives_BL, step=1)
    expected.loss.backward()
    pieces.begin(positives_BL, step=1)
    outputs = []
    for first in range(0, 16, 4):
        rows = slice(first, first + 4)
        outputs.append(pieces.loss(parted_BD[rows], rows))
        outputs[-1].loss.backward()
    found = combined(outputs)
    assert relative(found.loss, expected.loss.detach()) <= 1e-14
    assert relative(parted_BD.grad, all_features_BD.grad) <= 1e-13
    assert relative(pieces.gradient_TD, whole.gradient_TD) <= 1e-13
    assert vars(found.stats) == pytest.approx(vars(expected.stats))
    assert torch.equal(found.features_BD, expected.features_BD)
    assert float(pieces.gradient_square_sum()) == pytest.approx(float(whole.gradient_square_sum()))
    for head in (whole, pieces):
        head.step(0.1)
    assert relative(pieces.centers_CD, whole.centers_CD) <= 1e-13
    assert pieces.threshold == pytest.approx(whole.threshold)
    assert (whole.threshold != 0) == (loss == "mlcd_bias")


@pytest.mark.parametrize("margin", [0.3, 1.0])
def test_arcface_has_the_slope_of_the_angle(margin):
    # beyond pi - margin the slope is 1, elsewhere sin(theta + m) / sin(theta)
    angles = torch.linspace(0.01, torch.pi - 0.01, 400, dtype=torch.float64)
    cosines = angles.cos().requires_grad_()
    arcface(cosines, margin).sum().backward()
    expected = torch.where(angles + margin < torch.pi, (angles + margin).sin() / angles.sin(), 1)
    torch.testing.assert_close(cosines.grad, expected, rtol=1e-9, atol=1e-9)
    assert (arcface(cosines, margin).diff() < 0).all()


@pytest.mark.parametrize("cosine", [1.0, -1.0, 1.0 + 1e-7])
def test_arcface_is_finite_where_feature_and_center_meet(cosine):
    cosines = torch.tensor([cosine], requires_grad=True)
    value = arcface(cosines, 0.3)
    value.backward()
    assert bool(value.isfinite())
    assert bool(cosines.grad.isfinite())


def test_partial_fc_draws_the_positives_of_the_batch_and_says_how_many():
    head = ShardedHead(HeadSpec(sampling="partial_fc", negative_ratio=0.1), 2_000, DIM)
    positives_BL = torch.arange(0, 480).view(60, 8)  # all in the first two of eight blocks, 25 of their share each
    output = head(torch.randn(60, DIM), positives_BL, step=4)
    sampled = head.sampled_ids(4, positives_BL)
    assert set(range(480)) <= set(sampled.tolist())
    independent = ShardedHead(HeadSpec(negative_ratio=0.1), 2_000, DIM).sampled_ids(4)
    assert torch.equal(sampled[sampled >= 500], independent[independent >= 500])
    assert output.stats.num_sampled == len(sampled) > 200
    assert output.stats.sampled_share == len(sampled) / 2_000


def test_inverse_rate_makes_the_negative_sum_unbiased():
    # over the steps the mean of exp(loss) - 1 is the sum over all negatives, not r times it
    generator = torch.Generator().manual_seed(0)
    features_BD, positives_BL = torch.randn(4, DIM, dtype=torch.float64, generator=generator), torch.zeros(4, 1).long()
    spec = {"loss": "mlcd", "scale": 2.0, "margin": 0.0}
    head = ShardedHead(HeadSpec(**spec, negative_ratio=0.1, negative_weighting="inverse_rate"), 400, DIM, dtype=F64)
    whole = ShardedHead(HeadSpec(**spec, negative_ratio=1.0), 400, DIM, dtype=F64)

    def negative_sum(head, row, step):
        cosine = torch.nn.functional.cosine_similarity(features_BD[row], head.centers_CD[0], dim=0)
        loss = head(features_BD[row : row + 1], positives_BL[:1], step=step).loss
        return float(torch.expm1(loss - torch.log1p(torch.exp(-2 * cosine))).detach())

    for row in range(4):
        mean = sum(negative_sum(head, row, step) for step in range(600)) / 600
        assert mean == pytest.approx(negative_sum(whole, row, 0), rel=0.03)


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "softmax"}, "num_positive=1"),
        ({"sampling": "partial_fc", "negative_weighting": "inverse_rate"}, "negative_weighting=none"),
        ({"margin_kind": "arcface", "margin": 2.0}, "below pi/2"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings, message):
    head = ShardedHead(HeadSpec(**settings), 64, DIM)
    with pytest.raises(ConfigError, match=message):
        head(torch.randn(2, DIM), torch.tensor([[1, 2], [3, 4]]), step=0)


def test_initial_centers_do_not_touch_the_global_random_state():
    before = torch.random.get_rng_state()
    first, second = (ShardedHead(HeadSpec(), 64, DIM, seed=seed) for seed in (0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(first.centers_CD, second.centers_CD)
