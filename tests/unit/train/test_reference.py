"""The dense oracle against the equations written out with Python numbers."""

import math

import pytest
import torch

from mlcd_core.train.head import HeadSpec, reference_loss


def cosine(x, y):
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    return dot / math.sqrt(sum(a * a for a in x)) / math.sqrt(sum(b * b for b in y))


def positive_logit(cos, spec, threshold):
    """CosFace, ArcFace or no margin, as their papers write them."""
    if spec.margin_kind == "cosface":
        cos -= spec.margin
    elif spec.margin_kind == "arcface":
        angle = math.acos(cos) + spec.margin
        cos = math.cos(angle) if angle <= math.pi else cos - spec.margin * math.sin(spec.margin)
    return spec.scale * (cos - threshold)


def equation_loss(features, centers, positives, spec, negatives, threshold=0.0):
    """Eq. 3 (softmax), 4 (mlc) and 5 (mlcd) of arXiv 2407.17331 row by row; softmax_masked is a mean of Eq. 3."""
    losses = []
    for feature, row_positives in zip(features, positives, strict=True):
        own = [label for label in row_positives if label != -1]
        if not own:
            continue
        positive = [positive_logit(cosine(feature, centers[label]), spec, threshold) for label in own]
        weight = len(centers) / len(negatives) if spec.negative_weighting == "inverse_rate" else 1
        others = [label for label in negatives if label not in own]
        push = sum(weight * math.exp(spec.scale * (cosine(feature, centers[label]) - threshold)) for label in others)
        pull = sum(math.exp(-z) for z in positive)
        losses.append(
            {
                "mlcd": math.log(1 + pull) + math.log(1 + push),
                "mlcd_bias": math.log(1 + pull) + math.log(1 + push),
                "mlc": math.log(1 + push * pull),
                "softmax": math.log(1 + push * math.exp(-positive[0])),
                "softmax_masked": sum(math.log(1 + push * math.exp(-z)) for z in positive) / len(positive),
            }[spec.loss]
        )
    return sum(losses) / len(losses)


@pytest.mark.parametrize("weighting", ["none", "inverse_rate"])
@pytest.mark.parametrize("margin_kind", ["cosface", "arcface", "none"])
@pytest.mark.parametrize("negatives", [None, [0, 2, 5]])
@pytest.mark.parametrize(
    ("loss", "num_positive"),
    [("mlcd", 1), ("mlcd", 3), ("mlc", 1), ("mlc", 3), ("softmax", 1), ("softmax_masked", 3), ("mlcd_bias", 3)],
)
def test_reference_is_the_equation(loss, num_positive, negatives, margin_kind, weighting):
    generator = torch.Generator().manual_seed(1)
    features_BD = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    centers_CD = torch.randn(7, 4, dtype=torch.float64, generator=generator)
    positives_BL = torch.rand(6, 7, generator=generator).topk(num_positive, dim=1).indices
    positives_BL[1] = -1
    positives_BL[2, 1:] = -1
    # the opposite of a positive's center: its angle and the margin pass pi
    features_BD[0] = -centers_CD[positives_BL[0, 0]] + 0.01
    spec = HeadSpec(loss=loss, scale=16, margin=0.1, margin_kind=margin_kind, negative_weighting=weighting)
    threshold = 0.2 if loss == "mlcd_bias" else 0.0
    found = reference_loss(
        features_BD,
        centers_CD,
        positives_BL,
        spec,
        negatives_S=None if negatives is None else torch.tensor(negatives),
        threshold=threshold,
    )
    expected = equation_loss(
        features_BD.tolist(), centers_CD.tolist(), positives_BL.tolist(), spec, negatives or list(range(7)), threshold
    )
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_random_unit_vectors_give_the_level_that_theory_says():
    # E[exp(64 cos)] in 512 dims is about 54.6, so 1e4 negatives give log(1 + 5.46e5) = 13.2 (notes of the paper)
    generator = torch.Generator().manual_seed(0)
    features_BD = torch.randn(64, 512, dtype=torch.float64, generator=generator)
    centers_CD = torch.randn(10_001, 512, dtype=torch.float64, generator=generator)
    spec = HeadSpec(scale=64, margin=0)
    positives_BL = torch.zeros(64, 1, dtype=torch.int64)
    whole = reference_loss(features_BD, centers_CD, positives_BL, spec)
    pull = reference_loss(features_BD, centers_CD, positives_BL, spec, negatives_S=torch.tensor([0]))
    assert float(whole - pull) == pytest.approx(13.2, abs=0.1)


def test_batch_without_positives_gives_zero_and_zero_gradients():
    features_BD = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    loss = reference_loss(features_BD, torch.randn(5, 4).double(), torch.full((3, 2), -1), HeadSpec())
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(features_BD.grad, torch.zeros(3, 4).double())
