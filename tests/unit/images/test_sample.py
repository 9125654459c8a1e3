"""PSNR of fast decoding: the textbook formula, over images that it changes."""

import io

import numpy as np
import pytest
from PIL import Image

from mlcd_core.images.decode import decode_images
from mlcd_core.images.sample import PsnrSample, fast_decode_psnr


def jpeg(width: int, height: int, seed: int = 0) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(sink, "JPEG")
    return sink.getvalue()


def psnr_db(data: bytes, size: int) -> float:
    """By the definition, pixel after pixel."""
    exact, fast = (
        decode_images([data], image_size=size, max_pixels=10**7, mode=mode).pixels_BCHW.ravel().tolist()
        for mode in ("exact", "fast")
    )
    mean_square = sum((a - b) ** 2 for a, b in zip(exact, fast, strict=True)) / len(exact)
    return float(10 * np.log10(255 * 255 / mean_square))


def test_mean_and_worst_are_those_of_the_images_that_change() -> None:
    large = [jpeg(640, 480, seed=1), jpeg(1_000, 400, seed=2)]
    sample = fast_decode_psnr([large[0], None, jpeg(60, 60), b"", large[1]], image_size=32, max_pixels=10**7)
    ratios = [psnr_db(data, 32) for data in large]
    assert sample.images == 2
    assert sample.mean_db == pytest.approx(sum(ratios) / 2)
    assert sample.worst_db == pytest.approx(min(ratios))


@pytest.mark.parametrize("images", [[], [None, b"<html>"], [jpeg(60, 60)]])
def test_nothing_changed_gives_no_ratio(images: list[bytes | None]) -> None:
    assert fast_decode_psnr(images, image_size=32, max_pixels=10**7) == PsnrSample(0, None, None)


def test_photos_of_four_sizes_stay_above_45_db() -> None:
    images = [jpeg(int(1.4 * height), height, seed=height) for height in (300, 500, 900, 1_700)]
    sample = fast_decode_psnr(images, image_size=64, max_pixels=10**7)
    assert sample.images == 4
    assert sample.worst_db is not None
    assert sample.worst_db > 45
