"""Decoding: images per second on one core, exact and fast, beside plain Pillow, and what fast costs in PSNR.

The images are three photographs that come with scikit-learn and matplotlib (427 to 600 px), cut and mirrored in eight
ways each and resized to the size that is measured, so those above 600 px are smoother than a camera's and decode a bit
faster. JPEG, quality 90.
"""

import io
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import numpy as np
from embed_bare import plain_pixels
from PIL import Image, ImageOps

from mlcd_core.images.decode import decode_images
from mlcd_core.images.sample import fast_decode_psnr

TARGET, MAX_PIXELS = 224, 64_000_000
SHORT_SIDES = (256, 512, 1024, 2048)
PHOTOS = (
    ("sklearn.datasets", "images/china.jpg"),
    ("sklearn.datasets", "images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
CUTS = 8  # of each photograph
QUALITY = 90
GOAL_PSNR_DB = 50


def decode_section(runs: int) -> list[str]:
    """Every size, and what the page says of it."""
    return [
        "## Decoding",
        "",
        f"Images per second and core at {TARGET} px, best of {runs} runs. Three photographs (scikit-learn's and",
        f"matplotlib's, 427 to 600 px), cut and mirrored in {CUTS} ways each, resized to the short side given and",
        f"saved as JPEG of quality {QUALITY}. Above 600 px they are enlarged, so smoother than a camera's, which will",
        "decode slower and have a lower PSNR. `exact` is checked to be the pixels of plain Pillow.",
        "",
        "| short side | kB | plain Pillow | exact | fast | fast / exact | PSNR of fast, mean | worst |",
        "|---|---|---|---|---|---|---|---|",
        *(decode_row(side, photographs(side), runs) for side in SHORT_SIDES),
        "",
    ]


def photographs(short_side: int) -> list[bytes]:
    """JPEGs of that short side."""
    return [jpeg for package, name in PHOTOS for jpeg in cuts(package, name, short_side)]


def cuts(package: str, name: str, short_side: int) -> list[bytes]:
    """Eight of one photograph: another corner cut off, and mirrored."""
    with resources.files(package).joinpath(name).open("rb") as file:
        photo = Image.open(file).convert("RGB")
    found = []
    for cut in range(CUTS):
        left, top = photo.width // 10 * (cut & 1), photo.height // 10 * (cut >> 1 & 1)
        part = photo.crop((left, top, left + photo.width * 9 // 10, top + photo.height * 9 // 10))
        part = ImageOps.mirror(part) if cut & 4 else part
        scale = short_side / min(part.size)
        part = part.resize((round(part.width * scale), round(part.height * scale)), Image.Resampling.BICUBIC)
        sink = io.BytesIO()
        part.save(sink, "JPEG", quality=QUALITY)
        found.append(sink.getvalue())
    return found


def decode_row(short_side: int, images: Sequence[bytes], runs: int) -> str:
    """One size: the ways take turns."""
    ways: dict[str, Callable[[], Any]] = {
        "plain": lambda: np.stack([plain_pixels(image, TARGET) for image in images]).transpose(0, 3, 1, 2),
        "exact": lambda: decode_images(images, image_size=TARGET, max_pixels=MAX_PIXELS, mode="exact").pixels_BCHW,
        "fast": lambda: decode_images(images, image_size=TARGET, max_pixels=MAX_PIXELS, mode="fast").pixels_BCHW,
    }
    assert np.array_equal(ways["plain"](), ways["exact"]()), "exact is not what plain Pillow gives"
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, decode in ways.items():
            started = time.perf_counter()
            decode()
            rates[name].append(len(images) / (time.perf_counter() - started))
    best = {name: max(found) for name, found in rates.items()}
    psnr = fast_decode_psnr(images, image_size=TARGET, max_pixels=MAX_PIXELS)
    cells = [f"{short_side:,}", f"{statistics.mean(map(len, images)) / 1e3:,.0f}"]
    cells += [f"{best[name]:,.0f}" for name in ways] + [f"{best['fast'] / best['exact']:.2f}"]
    cells += ["the same pixels" if db is None else f"{db:.1f} dB" for db in (psnr.mean_db, psnr.worst_db)]
    return f"| {' | '.join(cells)} |"
