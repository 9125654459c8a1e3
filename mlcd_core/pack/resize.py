"""Shrinks images that are larger than wanted to JPEG; all others keep their bytes.

RGB first, then bicubic, as the exact decoding does. An image that cannot be decoded, or whose file would take too much
memory or time, stays as it is: embedding gives it its status, which packing would only hide.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from mlcd_core.images.decode import FORMATS
from mlcd_core.images.decode_cost import is_too_costly
from mlcd_core.images.square import resized_sides, to_rgb

# as embed.max_pixels: an image with more is given a status there
MOST_PIXELS = 64_000_000
MOST_JPEG_SIDE = 65_500

Outcome = Literal["as_it_is", "resized", "not_resized"]


@dataclass(frozen=True)
class Resized:
    """The bytes to keep; ``not_resized`` where an image should have been shrunk or looked at and could not."""

    data: bytes
    outcome: Outcome


def resized(data: bytes, *, short_side: int, quality: int) -> Resized:
    """A JPEG whose short side has ``short_side`` pixels, of an image whose short side has more. Never raises."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd files, which get their status later
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if min(image.size) <= short_side:
                return Resized(data, "as_it_is")
            size = resized_sides(image.size, short_side)
            if is_too_costly(image, data, max_pixels=MOST_PIXELS) or max(size) > MOST_JPEG_SIDE:
                return Resized(data, "not_resized")
            small = to_rgb(image).resize(size, Image.Resampling.BICUBIC)
    except Exception:  # decoders raise almost anything
        return Resized(data, "not_resized")
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=quality)
    return Resized(sink.getvalue(), "resized")
