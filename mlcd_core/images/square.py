"""An image to a square of RGB pixels: RGB first, bicubic antialiased resize of the short side, centre crop.

``exact_square`` gives the bits of Pillow's own operations in that order. ``fast_square`` lets libjpeg decode a large
JPEG at a half, a quarter or an eighth of its size, never below twice the square, and shrinks by boxes before the
bicubic filter; other formats have no such way and stay exact.
"""

import math

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

# Beyond this the long side is cut to its centre before the resize: a 1 x 10,000 image at 224 px would need 1.5 GB.
WIDEST_ASPECT = 20
BICUBIC_SUPPORT = 2
# times the square that a JPEG keeps at least: at once its size costs 12 dB of PSNR (a photo of 1,024 px to 224 px)
DRAFT_FACTOR = 2
REDUCING_GAP = 3.0


def exact_square(image: Image.Image, size: int) -> Image.Image:
    """The centre ``size`` x ``size`` square of an opened image, RGB."""
    rgb = to_rgb(image)
    if _is_wide(rgb):
        return _square_of_wide(rgb, size)
    if min(rgb.size) != size:
        rgb = rgb.resize(resized_sides(rgb.size, size), Image.Resampling.BICUBIC)
    return _centre(rgb, size)


def fast_square(image: Image.Image, size: int) -> Image.Image:
    """The same square with a small error where the image is a JPEG of more than about four times its size."""
    if not isinstance(image, JpegImageFile) or _is_wide(image):
        return exact_square(image, size)
    resized = resized_sides(image.size, size)
    drafted = image.draft(None, (DRAFT_FACTOR * size, DRAFT_FACTOR * size))
    # the box in the smaller image that is the whole picture: its sides are rounded up
    box = drafted[1] if drafted else (0, 0, *image.size)
    rgb = to_rgb(image).resize(resized, Image.Resampling.BICUBIC, box=box, reducing_gap=REDUCING_GAP)
    return _centre(rgb, size)


def to_rgb(image: Image.Image) -> Image.Image:
    """The opened image, decoded, in RGB; alpha is dropped. Raises whatever the decoder does."""
    image.load()
    if image.mode == "RGB":
        return image  # convert would copy: four bytes a pixel
    if image.mode.startswith("I;16"):
        # PIL clips 16-bit gray at 255, which makes nearly every pixel white; the high byte keeps the picture
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def resized_sides(sides: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height in pixels of an image of these sides once its short side has ``size``."""
    width, height = sides
    long_after = int(size * max(sides) / min(sides))  # torchvision's rounding
    return (size, long_after) if width <= height else (long_after, size)


def _is_wide(image: Image.Image) -> bool:
    short, long = sorted(image.size)
    return long > WIDEST_ASPECT * short


def _centre(image: Image.Image, size: int) -> Image.Image:
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
