"""Whether an image is too costly to decode, told from its file's header: before memory or minutes are gone.

A pixel of a plain RGB JPEG is the unit: four bytes in Pillow, 13 ns on one core. Other formats need more: WebP holds
three canvases, a progressive JPEG all its coefficients, and every scan of one visits all pixels again (1,000 empty
scans are 40 kB and take a second per megapixel). So that no file takes more than about 0.3 GB and, on such a core, one
second, the limit of 64 million pixels is one of cost too: 25 million of a PNG, 16 million of a WebP. Who allows more
pixels than that allows as much more cost.
"""

import re

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

USUAL_COST = 64_000_000
# bytes and nanoseconds a pixel, worst mode of the format: BMP and GIF 8 and 13, PNG and TIFF 10 and 38, WebP 16 and 34
FORMAT_COST = {"BMP": 2.0, "GIF": 2.0, "PNG": 2.5, "TIFF": 2.5, "WEBP": 4.0}
DEEP_COST = 4.0  # of 16 bits a channel: 50 ns
CONVERTED_JPEG_COST = 2.0  # gray and CMYK: a copy in RGB
# coefficients of 4:4:4 take 6 bytes a pixel beside the pixels
SCANNED_JPEG_COST = 2.5
SCANS_PER_COST = 4  # usual progressive files have 10 scans
# what starts a segment; FF 00 and FF D0 to D7 stand inside the data of a scan
SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd9-\xdf\xe0-\xef\xfe]")
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9


def is_too_costly(image: Image.Image, data: bytes, *, max_pixels: int) -> bool:
    """Whether this opened image of the file ``data`` has more than ``max_pixels``, or costs more than is allowed."""
    num_pixels = image.width * image.height
    return num_pixels > max_pixels or num_pixels * cost_per_pixel(image, data) > max(max_pixels, USUAL_COST)


def cost_per_pixel(image: Image.Image, data: bytes) -> float:
    """How many pixels of a plain JPEG one pixel of this opened image of the file ``data`` costs."""
    if not isinstance(image, JpegImageFile):
        assert image.format is not None
        return DEEP_COST if _is_deep(image) else FORMAT_COST[image.format]
    cost = 1.0 if image.mode == "RGB" else CONVERTED_JPEG_COST
    num_scans = _num_scans(data)
    if num_scans > 1 or image.info.get("progressive"):
        cost = max(cost, SCANNED_JPEG_COST, num_scans / SCANS_PER_COST)
    return cost


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has 16 bits a channel; Pillow's mode is RGB all the same, the decoder's arguments say it."""
    return ";16" in str(getattr(image, "tile", ())[:1])


def _num_scans(data: bytes) -> int:
    """Scans of the first picture of a JPEG file; thumbnails in its header and pictures behind it do not count."""
    num_scans, place = 0, 2
    while (segment := SEGMENT.search(data, place)) is not None:
        start = segment.start()
        if data[start + 1] == END_OF_IMAGE:
            break
        num_scans += data[start + 1] == START_OF_SCAN
        place = start + 2 + int.from_bytes(data[start + 2 : start + 4])
    return num_scans
