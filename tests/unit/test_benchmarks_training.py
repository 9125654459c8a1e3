"""The rival that training is measured against does what its sources say."""

import pytest
import torch
from torch.nn import functional

from benchmarks.partial_fc import KSlotPartialFC

NUM_CLASSES, DIM, SCALE, MARGIN = 40, 6, 16.0, 0.3


def rival(negative_ratio):
    settings = {"negative_ratio": negative_ratio, "scale": SCALE, "margin": MARGIN, "seed": 3}
    return KSlotPartialFC(NUM_CLASSES, DIM, **settings).double()


def batch():
    generator = torch.Generator().manual_seed(0)
    labels_BL = torch.rand(9, NUM_CLASSES, generator=generator).argsort(dim=1)[:, :4]
    return torch.randn(9, DIM, dtype=torch.float64, generator=generator), labels_BL


def mean_of_softmaxes(features_BD, weight_CD, labels_BL, sampled):
    """The same loss by plain autograd over all classes, those not sampled at -inf."""
    cosine_BC = functional.normalize(features_BD) @ functional.normalize(weight_CD).T
    losses = []
    for labels_B, index_S in zip(labels_BL.T, sampled, strict=True):
        is_left_out_C = torch.ones(NUM_CLASSES, dtype=torch.bool).index_fill(0, index_S, False)
        logits_BC = SCALE * (cosine_BC - MARGIN * functional.one_hot(labels_B, NUM_CLASSES).double())
        losses.append(functional.cross_entropy(logits_BC.masked_fill(is_left_out_C, -torch.inf), labels_B))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("negative_ratio", [1.0, 0.5, 0.1])  # at 0.1 a slot has more positives than it may sample
def test_loss_and_gradients_are_those_of_the_mean_over_slots(negative_ratio):
    features_BD, labels_BL = batch()
    found, twin = rival(negative_ratio), rival(negative_ratio)
    everything = [torch.arange(NUM_CLASSES)] * labels_BL.shape[1]
    sampled = everything if negative_ratio == 1 else [twin.sampled(labels_B) for labels_B in labels_BL.T]
    inputs = features_BD.clone().requires_grad_(), features_BD.clone().requires_grad_()

    loss = found(inputs[0], labels_BL)
    expected = mean_of_softmaxes(inputs[1], twin.weight_CD, labels_BL, sampled)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.weight_CD.grad, twin.weight_CD.grad, rtol=1e-10, atol=1e-14)


def test_a_slot_samples_its_positives_and_fills_up_with_others():
    _, labels_BL = batch()
    draws = [rival(0.5).sampled(labels_BL[:, 0]), rival(0.1).sampled(labels_BL[:, 0])]
    positives = labels_BL[:, 0].unique()
    assert len(draws[0]) == NUM_CLASSES // 2
    assert torch.isin(positives, draws[0]).all()
    assert (draws[0].diff() > 0).all()
    assert torch.equal(draws[1], positives)
