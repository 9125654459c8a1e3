"""Encoded images to square RGB pixels, one status per image.

The exact path of the CLIP family: RGB first, then a bicubic antialiased resize of the short side, then a centre crop,
uint8 (``square.py``). RGB comes first, as in open_clip's training loader (its inference transform converts last, which
changes palette and 1-bit images). Normalising is left to the embedder, on the device. A bad image never raises: it is
a row of zeros with a status. EXIF orientation is ignored and alpha is dropped, as open_clip and torchvision do. An
animation gives its first frame.

B images of a batch, C = 3 colours, H = W = image_size.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Literal

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,  # noqa: F401 - opens JPEGs with more pictures behind the first, as phones write
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from mlcd_core.images.decode_cost import is_too_costly
from mlcd_core.images.square import exact_square, fast_square
from mlcd_core.tables import RowStatus

DecodeMode = Literal["exact", "fast"]

# Imported by name, so that no thread waits for or races with PIL's lazy plugin loading.
FORMATS = (
    JpegImagePlugin.JpegImageFile.format,
    PngImagePlugin.PngImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
    GifImagePlugin.GifImageFile.format,
    BmpImagePlugin.BmpImageFile.format,
    TiffImagePlugin.TiffImageFile.format,
)
IMAGES_PER_CALL = 16  # a call of the pool costs 50 to 75 us on 2 cores, a small image about 100 us
SQUARES: dict[DecodeMode, Callable[[Image.Image, int], Image.Image]] = {"exact": exact_square, "fast": fast_square}


@dataclass(frozen=True)
class DecodedImages:
    """``pixels_BCHW`` uint8 RGB; ``status_B`` int8 RowStatus. A row whose status is not OK has zero pixels."""

    pixels_BCHW: np.ndarray
    status_B: np.ndarray


def decode_images(
    images: Sequence[bytes | None],
    *,
    image_size: int,
    max_pixels: int,
    pool: ThreadPoolExecutor | None = None,
    mode: DecodeMode = "exact",
) -> DecodedImages:
    """Decode every image to ``image_size`` x ``image_size`` RGB, on the threads of ``pool`` if there is one.

    Never raises for a bad image. ``max_pixels`` is checked on the header, before any pixel is decoded; so is what the
    format makes of them (``decode_cost.py``), and PIL's own limit (about 179 million pixels) holds beside both. mode
    ``fast`` changes pixels of large JPEGs a little, and no status. A file cut inside its header cannot be told from a
    file that is no image: NOT_AN_IMAGE. PIL's warnings about odd files are ignored in this process from the first
    call on; libtiff writes its own about broken data to stderr.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # catch_warnings is not safe with threads
    pixels_BCHW = np.zeros((len(images), 3, image_size, image_size), np.uint8)
    status_B = np.empty(len(images), np.int8)
    decode = partial(_decode_all, image_size=image_size, max_pixels=max_pixels, square=SQUARES[mode])
    parts = [images[first : first + IMAGES_PER_CALL] for first in range(0, len(images), IMAGES_PER_CALL)]
    decoded = map(decode, parts) if pool is None else pool.map(decode, parts)
    for row, result in enumerate(chain.from_iterable(decoded)):
        if isinstance(result, RowStatus):
            status_B[row] = result
        else:
            status_B[row] = RowStatus.OK
            pixels_BCHW[row] = result.transpose(2, 0, 1)
    return DecodedImages(pixels_BCHW=pixels_BCHW, status_B=status_B)


def _decode_all(
    images: Sequence[bytes | None],
    *,
    image_size: int,
    max_pixels: int,
    square: Callable[[Image.Image, int], Image.Image],
) -> list[np.ndarray | RowStatus]:
    return [_decode_one(data, image_size=image_size, max_pixels=max_pixels, square=square) for data in images]


def _decode_one(
    data: bytes | None, *, image_size: int, max_pixels: int, square: Callable[[Image.Image, int], Image.Image]
) -> np.ndarray | RowStatus:
    if data is None:
        return RowStatus.NULL_BYTES
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if is_too_costly(image, data, max_pixels=max_pixels):
                return RowStatus.TOO_MANY_PIXELS
            return np.asarray(square(image, image_size))
    except Exception as error:  # decoders raise almost anything; each kind is a status
        return _status_of(error, data)


def _status_of(error: Exception, data: bytes) -> RowStatus:
    if isinstance(error, Image.DecompressionBombError):
        return RowStatus.TOO_MANY_PIXELS
    if isinstance(error, UnidentifiedImageError):
        return RowStatus.NOT_AN_IMAGE
    if isinstance(error, EOFError) or "truncated" in str(error).lower() or _is_short_webp(data):
        return RowStatus.TRUNCATED
    return RowStatus.DECODE_ERROR


def _is_short_webp(data: bytes) -> bool:
    """Whether a WebP file is shorter than its first bytes say: its decoder gives no reason for a failure."""
    return data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little")
