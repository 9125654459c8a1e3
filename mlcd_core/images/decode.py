"""Encoded images to square RGB pixels, one status per image.

The exact path of the CLIP family: RGB first, then a bicubic antialiased resize of the short side, then a centre crop,
uint8. RGB comes first, as in open_clip's training loader (its inference transform converts last, which changes palette
and 1-bit images). Normalising is left to the embedder, on the device. A bad image never raises: it is a row of zeros
with a status. EXIF orientation is ignored and alpha is dropped, as open_clip and torchvision do.

B images of a batch, C = 3 colours, H = W = image_size.
"""

import io
import math
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from mlcd_core.tables import RowStatus

# Imported by name, so that no thread waits for or races with PIL's lazy plugin loading.
FORMATS = (
    JpegImagePlugin.JpegImageFile.format,
    PngImagePlugin.PngImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
    GifImagePlugin.GifImageFile.format,
    BmpImagePlugin.BmpImageFile.format,
    TiffImagePlugin.TiffImageFile.format,
)
# Beyond this the long side is cut to its centre before the resize: a 1 x 10,000 image at 224 px would need 1.5 GB.
WIDEST_ASPECT = 20
BICUBIC_SUPPORT = 2


@dataclass(frozen=True)
class DecodedImages:
    """``pixels_BCHW`` uint8 RGB; ``status_B`` int8 RowStatus. A row whose status is not OK has zero pixels."""

    pixels_BCHW: np.ndarray
    status_B: np.ndarray


def decode_images(
    images: Sequence[bytes | None], *, image_size: int, max_pixels: int, pool: ThreadPoolExecutor | None = None
) -> DecodedImages:
    """Decode every image to ``image_size`` x ``image_size`` RGB, on the threads of ``pool`` if there is one.

    Never raises for a bad image. ``max_pixels`` is checked on the header, before any pixel is decoded; PIL's own
    limit (about 179 million pixels) holds beside it. A file cut inside its header cannot be told from a file that is
    no image: NOT_AN_IMAGE. PIL's warnings about odd files are ignored in this process from the first call on.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # catch_warnings is not safe with threads
    pixels_BCHW = np.zeros((len(images), 3, image_size, image_size), np.uint8)
    status_B = np.empty(len(images), np.int8)
    decode = partial(_decode_one, image_size=image_size, max_pixels=max_pixels)
    for row, result in enumerate(map(decode, images) if pool is None else pool.map(decode, images)):
        if isinstance(result, RowStatus):
            status_B[row] = result
        else:
            status_B[row] = RowStatus.OK
            pixels_BCHW[row] = result.transpose(2, 0, 1)
    return DecodedImages(pixels_BCHW=pixels_BCHW, status_B=status_B)


def _decode_one(data: bytes | None, *, image_size: int, max_pixels: int) -> np.ndarray | RowStatus:
    if data is None:
        return RowStatus.NULL_BYTES
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                return RowStatus.TOO_MANY_PIXELS
            return np.asarray(_square(_to_rgb(image), image_size))
    except Exception as error:  # decoders raise almost anything; each kind is a status
        return _status_of(error)


def _status_of(error: Exception) -> RowStatus:
    if isinstance(error, Image.DecompressionBombError):
        return RowStatus.TOO_MANY_PIXELS
    if isinstance(error, UnidentifiedImageError):
        return RowStatus.NOT_AN_IMAGE
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return RowStatus.TRUNCATED
    return RowStatus.DECODE_ERROR


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # PIL clips 16-bit gray at 255, which makes nearly every pixel white; the high byte keeps the picture
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
    short, long = sorted(image.size)
    if long > WIDEST_ASPECT * short:
        return _square_of_wide(image, size)
    if short != size:
        long_after = int(size * long / short)  # torchvision's rounding
        image = image.resize(
            (size, long_after) if image.width == short else (long_after, size), Image.Resampling.BICUBIC
        )
    left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def _square_of_wide(image: Image.Image, size: int) -> Image.Image:
    """Resize only the pixels that the centre crop can see: its band, and the reach of the bicubic filter around it."""
    short, long = sorted(image.size)
    long_after = int(size * long / short)
    scale = long / long_after  # input pixels per output pixel
    first = round((long_after - size) / 2.0)
    margin = math.ceil(BICUBIC_SUPPORT * max(1.0, 1.0 / scale)) + 1
    begin, end = max(first - margin, 0), min(first + size + margin, long_after)
    reach, band = end - begin, (begin * scale, end * scale)
    before = first - begin
    if image.width == long:
        resized = image.resize((reach, size), Image.Resampling.BICUBIC, box=(band[0], 0, band[1], short))
        return resized.crop((before, 0, before + size, size))
    resized = image.resize((size, reach), Image.Resampling.BICUBIC, box=(0, band[0], short, band[1]))
    return resized.crop((0, before, size, before + size))
