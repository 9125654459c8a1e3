"""How far the pixels of fast decoding are from the exact ones, measured on a sample of the images themselves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlcd_core.images.decode import decode_images
from mlcd_core.tables import RowStatus

WHITE = 255


@dataclass(frozen=True)
class PsnrSample:
    """Peak signal-to-noise ratio in dB, over the ``images`` that fast decoding changed; None where it changed none."""

    images: int
    mean_db: float | None
    worst_db: float | None


def fast_decode_psnr(images: Sequence[bytes | None], *, image_size: int, max_pixels: int) -> PsnrSample:
    """Decode both ways and compare, one image after the other; images that are bad or equal both ways are left out."""
    ratios_db = [
        ratio_db
        for image in images
        if (ratio_db := _psnr_db(image, image_size=image_size, max_pixels=max_pixels)) is not None
    ]
    if not ratios_db:
        return PsnrSample(images=0, mean_db=None, worst_db=None)
    return PsnrSample(images=len(ratios_db), mean_db=float(np.mean(ratios_db)), worst_db=min(ratios_db))


def _psnr_db(image: bytes | None, *, image_size: int, max_pixels: int) -> float | None:
    exact = decode_images([image], image_size=image_size, max_pixels=max_pixels)
    if exact.status_B[0] != RowStatus.OK:
        return None
    fast = decode_images([image], image_size=image_size, max_pixels=max_pixels, mode="fast")
    error = exact.pixels_BCHW.astype(np.float64) - fast.pixels_BCHW
    mean_square = float(np.square(error).mean())
    return None if mean_square == 0 else float(10 * np.log10(WHITE**2 / mean_square))
