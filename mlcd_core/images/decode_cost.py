"""What an image costs to decode, told from its header: so that a small file cannot take a worker's memory or minutes.

A pixel of a plain RGB JPEG is the unit: four bytes in Pillow, 13 ns on one core. Other formats need more: WebP holds
three canvases, a progressive JPEG all its coefficients, and every scan of one visits all pixels again (1,000 empty
scans are 40 kB and take a second per megapixel). A limit of 64 million then means at most about 0.3 GB and, on such a
core, one second; measured per format by ``tests/unit/images/test_hostile.py``.
"""

import re

from PIL import Image

JPEG_FORMATS = ("JPEG", "MPO")
# bytes and nanoseconds a pixel, worst mode of the format: BMP and GIF 8 and 13, PNG and TIFF 10 and 38, WebP 16 and 34
FORMAT_COST = {"BMP": 2.0, "GIF": 2.0, "PNG": 2.5, "TIFF": 2.5, "WEBP": 4.0}
CONVERTED_JPEG_COST = 2.0  # gray and CMYK: a copy in RGB
# coefficients of 4:4:4 take 6 bytes a pixel beside the pixels
SCANNED_JPEG_COST = 2.5
SCANS_PER_COST = 4  # usual progressive files have 10 scans
# what starts a segment; FF 00 and FF D0 to D7 stand inside the data of a scan
SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd9-\xdf\xe0-\xef\xfe]")
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9


def decode_cost(image: Image.Image, data: bytes) -> float:
    """How many pixels of a plain JPEG cost as much, in memory or time, as this opened image of the file ``data``."""
    return image.width * image.height * _cost_per_pixel(image, data)


def _cost_per_pixel(image: Image.Image, data: bytes) -> float:
    if image.format not in JPEG_FORMATS:
        assert image.format is not None
        return FORMAT_COST[image.format]
    cost = 1.0 if image.mode == "RGB" else CONVERTED_JPEG_COST
    num_scans = _num_scans(data)
    if num_scans > 1 or image.info.get("progressive"):
        cost = max(cost, SCANNED_JPEG_COST, num_scans / SCANS_PER_COST)
    return cost


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
