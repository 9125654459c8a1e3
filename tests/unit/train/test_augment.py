"""Augmentation is a function of (seed, epoch, row): no state, any batch composition."""

import pytest
import torch

from mlcd_core.specs import TrainSpec
from mlcd_core.train.augment import AUGMENTS, augmented


def images(count=12, size=16):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_every_kind_of_the_spec_exists():
    assert set(TrainSpec.model_fields["augment"].annotation.__args__) == set(AUGMENTS)


@pytest.mark.parametrize("kind", ["shift_jitter", "crop_flip"])
def test_a_row_looks_the_same_in_any_batch_and_differs_by_epoch(kind):
    pixels_BCHW, rows_B = images(), torch.arange(100, 112)
    whole = augmented(pixels_BCHW, rows_B, kind=kind, seed=1, epoch=2)
    assert whole.dtype == torch.uint8
    assert whole.shape == pixels_BCHW.shape
    for part in ([0, 3, 11], [5]):
        assert torch.equal(augmented(pixels_BCHW[part], rows_B[part], kind=kind, seed=1, epoch=2), whole[part])
    assert not torch.equal(augmented(pixels_BCHW, rows_B, kind=kind, seed=1, epoch=3), whole)
    assert not torch.equal(augmented(pixels_BCHW, rows_B, kind=kind, seed=2, epoch=2), whole)


def test_none_changes_nothing():
    assert torch.equal(augmented(images(), torch.arange(12), kind="none", seed=0, epoch=0), images())


def test_shift_moves_by_up_to_four_pixels_and_repeats_the_edge():
    ramp = torch.arange(16, dtype=torch.uint8).expand(200, 3, 16, 16) * 8
    moved = augmented(ramp, torch.arange(200), kind="shift_jitter", seed=0, epoch=0)
    shifts = set()
    for image in moved[:, 0].float():
        columns = image[0] / (image[0, 8] if image[0, 8] else 1)
        # the first pixel repeats once per step to the right
        shifts.add(int((columns == columns[0]).sum()) - int((columns == columns[-1]).sum()))
    assert shifts == set(range(-4, 5))


def test_jitter_scales_channels_by_up_to_a_fifth():
    flat = torch.full((500, 3, 8, 8), 100, dtype=torch.uint8)
    gain = augmented(flat, torch.arange(500), kind="shift_jitter", seed=0, epoch=0)[:, :, 0, 0].float() / 100
    assert 0.8 <= gain.min() < 0.82
    assert 1.18 < gain.max() <= 1.2
    assert abs(torch.corrcoef(gain.T)[0, 1]) < 0.15


def test_crop_flip_mirrors_half_and_keeps_most_of_the_image():
    ramp = torch.linspace(0, 255, 16).to(torch.uint8).expand(400, 3, 16, 16)
    cropped = augmented(ramp, torch.arange(400), kind="crop_flip", seed=0, epoch=0)[:, 0].float()
    span = cropped[:, 8, -1] - cropped[:, 8, 0]
    assert 160 < int((span < 0).sum()) < 240
    # area >= 0.7 and aspect >= 0.8 leave at least sqrt(0.56) = 0.75 of the width
    assert span.abs().min() >= 0.74 * 255 - 16
