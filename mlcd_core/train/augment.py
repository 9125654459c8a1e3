"""Augmentation whose randomness is a function of (seed, epoch, global row): no state, the same at any world size.

A batch is changed at once by indexing or one grid_sample, uint8 in and uint8 out.

B images, C channels, H = W pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mlcd_core.hashing import splitmix64

MAX_SHIFT = 4  # pixels
JITTER = 0.2  # a channel is multiplied by 1 - JITTER to 1 + JITTER
CROP_AREA = (0.7, 1.0)  # of the image, as the authors' later DALI pipeline
CROP_ASPECT = (0.8, 1.25)
FLIP_CHANCE = 0.5

Draw = Callable[[int], Tensor]


def augmented(images_BCHW: Tensor, rows_B: Tensor, *, kind: str, seed: int, epoch: int) -> Tensor:
    """The batch changed by ``shift_jitter``, ``crop_flip`` or ``none``; rows_B are the global row numbers."""
    keys_B = splitmix64(seed, epoch, rows_B)

    def uniform(draw: int) -> Tensor:
        """One number in [0, 1) per row, another for each ``draw``."""
        return (splitmix64(keys_B, draw) >> 10).double() / 2**53

    return AUGMENTS[kind](images_BCHW, uniform)


def _none(images_BCHW: Tensor, uniform: Draw) -> Tensor:
    del uniform
    return images_BCHW


def _shift_jitter(images_BCHW: Tensor, uniform: Draw) -> Tensor:
    """Move by up to 4 pixels each way, repeating the edge, and scale each channel by 0.8 to 1.2."""
    num_images, num_channels, height, width = images_BCHW.shape
    down_B, right_B = ((uniform(draw) * (2 * MAX_SHIFT + 1)).long() - MAX_SHIFT for draw in (0, 1))
    y_BH = (torch.arange(height) - down_B[:, None]).clamp(0, height - 1)
    x_BW = (torch.arange(width) - right_B[:, None]).clamp(0, width - 1)
    image_B = torch.arange(num_images)
    # advanced indices around a slice put the channels last
    moved_BHWC = images_BCHW[image_B[:, None, None], :, y_BH[:, :, None], x_BW[:, None, :]]
    gain_BC = torch.stack([1 + JITTER * (2 * uniform(2 + c) - 1) for c in range(num_channels)], dim=1).float()
    return _to_uint8(moved_BHWC.float() * gain_BC[:, None, None, :]).permute(0, 3, 1, 2).contiguous()


def _crop_flip(images_BCHW: Tensor, uniform: Draw) -> Tensor:
    """A random crop of 0.7 to 1 of the area and aspect 0.8 to 1.25, stretched to the whole image; half are mirrored."""
    area_B = CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * uniform(0)
    aspect_B = CROP_ASPECT[0] * (CROP_ASPECT[1] / CROP_ASPECT[0]) ** uniform(1)
    wide_B = (area_B * aspect_B).sqrt().clamp(max=1)
    high_B = (area_B / aspect_B).sqrt().clamp(max=1)
    mirror_B = torch.where(uniform(4) < FLIP_CHANCE, -1.0, 1.0)
    zero_B = torch.zeros_like(wide_B)
    # coordinates run from -1 to 1 over the image
    to_x_B3 = torch.stack([wide_B * mirror_B, zero_B, (1 - wide_B) * (2 * uniform(2) - 1)], dim=1)
    to_y_B3 = torch.stack([zero_B, high_B, (1 - high_B) * (2 * uniform(3) - 1)], dim=1)
    grid_BHW2 = functional.affine_grid(
        torch.stack([to_x_B3, to_y_B3], dim=1).float(), list(images_BCHW.shape), align_corners=False
    )
    cropped_BCHW = functional.grid_sample(
        images_BCHW.float(), grid_BHW2, mode="bilinear", padding_mode="border", align_corners=False
    )
    return _to_uint8(cropped_BCHW)


def _to_uint8(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


AUGMENTS: dict[str, Callable[[Tensor, Draw], Tensor]] = {
    "none": _none,
    "shift_jitter": _shift_jitter,
    "crop_flip": _crop_flip,
}
