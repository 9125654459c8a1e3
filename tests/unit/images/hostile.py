"""Files that a web crawl or an enemy puts into an image column, made on the spot, each with the status it must get.

Whole files are small; what they claim to hold, or unpack to, is not.
"""

import gzip
import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mlcd_core.tables import RowStatus

OK = RowStatus.OK
NO_IMAGE = RowStatus.NOT_AN_IMAGE
CUT = RowStatus.TRUNCATED
TOO_MANY = RowStatus.TOO_MANY_PIXELS
BROKEN = RowStatus.DECODE_ERROR
MAX_PIXELS = 64_000_000
START_OF_FRAME, START_OF_SCAN = b"\xff\xc0", b"\xff\xda"


@dataclass(frozen=True)
class HostileFile:
    """One file and its status."""

    name: str
    data: bytes
    status: RowStatus


def corpus() -> list[HostileFile]:
    """All files, the costly ones last; names are unique."""
    groups = (no_images(), other_formats(), cut_files(), damaged_files(), odd_but_whole(), too_large(), bombs())
    files = [HostileFile(name, data, status) for name, data, status in itertools.chain(*groups)]
    assert len({file.name for file in files}) == len(files)
    return files


def no_images() -> Iterator[tuple[str, bytes, RowStatus]]:
    texts = {
        "html": b"<!DOCTYPE html><html><body><h1>403 Forbidden</h1></body></html>",
        "text": b"image not found\n" * 40,
        "json": b'{"error": "rate limited", "retry_after": 30}',
        "svg": b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>",
        "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
        "mp4": b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41" + bytes(200),
        "gzip-of-a-png": gzip.compress(encoded(photo(), "PNG"), mtime=0),
    }
    yield "empty", b"", NO_IMAGE
    yield "one-byte", b"\xff", NO_IMAGE
    yield "zeros", bytes(5_000), NO_IMAGE
    yield "noise", np.random.default_rng(7).bytes(5_000), NO_IMAGE
    for name, data in texts.items():
        yield name, data, NO_IMAGE


def other_formats() -> Iterator[tuple[str, bytes, RowStatus]]:
    """Whole images that Pillow reads, of formats that are not allowed: their decoders see much less use."""
    for kind in ("ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "EPS", "JPEG2000", "AVIF"):
        yield kind.lower(), encoded(photo(64, 64), kind), NO_IMAGE
    yield "psd", b"8BPS\x00\x01" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(300), NO_IMAGE
    yield "fits", b"SIMPLE  =                    T" + b" " * 2_850, NO_IMAGE
    yield "xbm", b"#define w_width 8\n#define w_height 1\nstatic char w_bits[] = {\n0xff};\n", NO_IMAGE


def cut_files() -> Iterator[tuple[str, bytes, RowStatus]]:
    wholes = {
        "jpeg": encoded(photo(), "JPEG"),
        "progressive-jpeg": encoded(photo(), "JPEG", progressive=True),
        "png": encoded(photo(), "PNG"),
        "webp": encoded(photo(), "WEBP"),
        "lossless-webp": encoded(photo(), "WEBP", lossless=True),
        "gif": encoded(photo(mode="P"), "GIF"),
        "bmp": encoded(photo(), "BMP"),
        "tiff": encoded(photo(), "TIFF"),
    }
    for kind, whole in wholes.items():
        # of a file cut inside its header nobody can say that it was an image; a JPEG is known by its first bytes
        yield f"{kind}-cut-to-8-bytes", whole[:8], CUT if "jpeg" in kind else NO_IMAGE
        for share in (0.25, 0.5, 0.75, 0.99):
            yield f"{kind}-cut-to-{share:.0%}", whole[: int(len(whole) * share)], CUT
    # its directory stands at the end
    deflated = encoded(photo(), "TIFF", compression="tiff_adobe_deflate")
    yield "deflated-tiff-cut-to-50%", deflated[: len(deflated) // 2], NO_IMAGE


def damaged_files() -> Iterator[tuple[str, bytes, RowStatus]]:
    jpeg, png = encoded(photo(), "JPEG"), encoded(photo(), "PNG")
    webp, gif = encoded(photo(), "WEBP"), encoded(photo(mode="P"), "GIF")
    data_crc = png.index(b"IEND") - 8
    yield "png-wrong-header-crc", png[:29] + bytes(4) + png[33:], NO_IMAGE
    yield "png-wrong-data-crc", png[:data_crc] + bytes(4) + png[data_crc + 4 :], OK  # all pixels were there
    yield "png-without-data", png_file(9, 9, b""), CUT
    yield "png-data-no-zlib", png_file(9, 9, b"no zlib stream"), BROKEN
    yield "png-short-data", png_file(90, 90, zlib.compress(bytes(300))), CUT
    yield "png-zero-width", png_file(0, 9, zlib.compress(bytes(9))), NO_IMAGE
    yield "png-zero-height", png_file(9, 0, zlib.compress(b"")), NO_IMAGE
    yield "jpeg-zero-height", resized_jpeg(jpeg, 120, 0), NO_IMAGE
    yield "jpeg-zero-width", resized_jpeg(jpeg, 0, 90), NO_IMAGE
    yield "jpeg-header-alone", jpeg[: jpeg.index(START_OF_SCAN)] + b"\xff\xd9", BROKEN
    yield "jpeg-noise-as-data", jpeg[:700] + np.random.default_rng(1).bytes(4_000) + b"\xff\xd9", OK
    yield "jpeg-two-bytes-missing", jpeg[:-2], CUT
    yield "gif-zero-size", gif[:6] + bytes(4) + gif[10:], OK  # its frame has a size of its own
    yield "gif-without-frame", gif[:13] + b";", NO_IMAGE
    yield "webp-wrong-length", webp[:4] + struct.pack("<I", 2**31) + webp[8:], CUT
    yield "webp-noise-as-data", webp[:40] + np.random.default_rng(2).bytes(len(webp) - 40), BROKEN
    yield "bmp-without-size", bmp_file(0, 0), NO_IMAGE
    yield "tiff-strip-outside", tiff_file(16, 16, bytes(768), strip_offset=10**9), CUT
    yield "tiff-no-deflate", tiff_file(16, 16, b"no zlib stream", compression=8), BROKEN
    yield "tiff-zero-size", tiff_file(0, 0, b""), NO_IMAGE


def odd_but_whole() -> Iterator[tuple[str, bytes, RowStatus]]:
    modes = {
        "JPEG": ["CMYK", "L"],
        "PNG": ["1", "L", "LA", "P", "RGBA", "I;16"],
        "TIFF": ["F", "1", "CMYK", "LAB", "I"],
    }
    for kind, names in modes.items():
        for mode in names:
            image = deep_gray() if mode == "I;16" else photo(mode="L").convert(mode) if mode in "FI" else lab(mode)
            yield f"{kind.lower()}-{mode}", encoded(image, kind), OK
    frames = [photo(mode="P")] * 3
    turned = Image.Exif()
    turned[0x0112] = 6
    png = encoded(photo(), "PNG")
    yield "png-transparent-palette", encoded(photo(mode="P"), "PNG", transparency=bytes(range(200))), OK
    yield "png-16-bit-rgb", png_file(20, 10, zlib.compress((b"\0" + bytes(range(120))) * 10), depth=16), OK
    yield "png-interlaced", png_file(1, 1, zlib.compress(bytes(4)), interlaced=1), OK
    yield "png-no-end", png[: png.index(b"IEND") - 4], OK
    yield "png-trailing-garbage", png + b"<html>" * 1_000, OK
    yield "png-named-jpg", png, OK  # the name of a column or file says nothing
    yield "jpeg-trailing-garbage", encoded(photo(), "JPEG") + bytes(5_000), OK
    yield "jpeg-progressive", encoded(photo(), "JPEG", progressive=True), OK
    yield "jpeg-turned-by-exif", encoded(photo(), "JPEG", exif=turned), OK
    yield "jpeg-two-pictures", encoded(photo(), "MPO", save_all=True, append_images=[photo()]), OK
    yield "gif-animated", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), OK
    yield "webp-animated", encoded(photo(), "WEBP", save_all=True, append_images=[photo(mode="L")] * 3), OK
    yield "webp-alpha", encoded(photo(mode="RGBA"), "WEBP"), OK
    yield "one-pixel", encoded(photo(1, 1), "PNG"), OK
    yield "1-x-10000", encoded(photo(1, 10_000), "PNG"), OK
    yield "10000-x-1", encoded(photo(10_000, 1), "PNG"), OK
    yield "60000-x-2-jpeg", encoded(photo(60_000, 2), "JPEG"), OK


def too_large() -> Iterator[tuple[str, bytes, RowStatus]]:
    """Sizes that only a header claims; nothing may be decoded."""
    jpeg, solid = encoded(photo(), "JPEG"), encoded(Image.new("RGBA", (8, 8)), "WEBP", lossless=True)
    progressive = encoded(photo(), "JPEG", progressive=True)
    yield "png-400-mp", png_file(20_000, 20_000, b""), TOO_MANY
    yield "png-26-mp", png_file(5_100, 5_100, b""), TOO_MANY
    yield "png-17-mp-of-16-bits", png_file(4_100, 4_100, b"", depth=16), TOO_MANY
    yield "png-2-gp-of-1-bit", png_file(2**31 - 1, 1, b"", depth=1, colours=0), TOO_MANY
    yield "jpeg-400-mp", resized_jpeg(jpeg, 20_000, 20_000), TOO_MANY
    yield "jpeg-65-mp", resized_jpeg(jpeg, 8_100, 8_100), TOO_MANY
    yield "progressive-jpeg-26-mp", resized_jpeg(progressive, 5_100, 5_100), TOO_MANY
    yield "webp-64-mp-in-36-bytes", resized_webp(solid, 8_000, 8_000), TOO_MANY
    yield "webp-268-mp-in-36-bytes", resized_webp(solid, 16_383, 16_383), TOO_MANY
    yield "gif-4-gp", b"GIF89a\xff\xff\xff\xff" + encoded(photo(mode="P"), "GIF")[10:], TOO_MANY
    yield "bmp-100-mp", bmp_file(10_000, 10_000), TOO_MANY
    yield "tiff-400-mp", tiff_file(20_000, 20_000, zlib.compress(bytes(9)), compression=8), TOO_MANY
    yield "jpeg-1-mp-1000-scans", scanned_jpeg(1_000, scans=1_000), TOO_MANY


def bombs() -> Iterator[tuple[str, bytes, RowStatus]]:
    """Small files with much inside, up to what the limit allows."""
    flood = deflated_zeros(1_000_000_000)
    text = b"Comment\0\0" + deflated_zeros(100_000_000)
    row = zlib.compress(bytes(4))
    solid = encoded(Image.new("RGBA", (8, 8)), "WEBP", lossless=True)
    yield "png-of-1-pixel-with-1-gb", png_file(1, 1, flood), OK
    yield "png-text-of-100-mb", png_file(1, 1, row, chunk(b"zTXt", text)), BROKEN
    yield "png-profile-of-100-mb", png_file(1, 1, row, chunk(b"iCCP", b"icc\0\0" + text[9:])), BROKEN
    yield "png-10000-comments", png_file(1, 1, row, chunk(b"tEXt", b"Comment\0hi") * 10_000), OK
    yield "jpeg-exif-of-3-mb", encoded(photo(), "JPEG")[:2] + app1(60_000) * 50 + encoded(photo(), "JPEG")[2:], OK
    yield "tiff-of-256-pixels-with-1-gb", tiff_file(16, 16, flood, compression=8), OK
    yield "png-25-mp", png_file(5_000, 5_000, deflated_zeros(5_000 * 15_001)), OK
    yield "png-16-mp-of-16-bit-rgba", png_file(4_000, 4_000, deflated_zeros(4_000 * 32_001), depth=16, colours=6), OK
    yield "webp-16-mp-in-36-bytes", resized_webp(solid, 4_000, 4_000), OK
    square = Image.new("RGB", (5_000, 5_000))
    yield "progressive-jpeg-25-mp", encoded(square, "JPEG", progressive=True, subsampling=0), OK
    yield "tiff-25-mp-of-floats", encoded(square.convert("F"), "TIFF", compression="tiff_adobe_deflate"), OK
    yield "jpeg-64-mp", encoded(Image.new("RGB", (8_000, 8_000)), "JPEG"), OK
    yield "jpeg-32-mp-cmyk", encoded(Image.new("CMYK", (5_600, 5_600)), "JPEG"), OK
    yield "bmp-31-mp-in-runs", bmp_of_runs(5_600), OK
    yield "tiff-60000-strips", tiff_of_strips(100, 60_000), OK
    yield "gif-30-mp", encoded(Image.new("P", (5_500, 5_500)), "GIF"), OK
    yield "jpeg-100-kp-1000-scans", scanned_jpeg(300, scans=1_000), OK


def photo(width: int = 120, height: int = 90, mode: str = "RGB") -> Image.Image:
    """Smooth colours with some noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    pixels = np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def lab(mode: str) -> Image.Image:
    from PIL import ImageCms

    if mode != "LAB":
        return photo(mode=mode)
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    converted = ImageCms.applyTransform(photo(), to_lab)
    assert converted is not None
    return converted


def deep_gray() -> Image.Image:
    return Image.fromarray(np.asarray(photo(mode="L")).astype(np.uint16) * 257)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_file(
    width: int, height: int, data: bytes, extra: bytes = b"", *, depth: int = 8, colours: int = 2, interlaced: int = 0
) -> bytes:
    """A PNG of any claims. colours: 0 gray, 2 RGB, 6 RGBA; data: of its only IDAT chunk."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def resized_jpeg(data: bytes, width: int, height: int) -> bytes:
    """The same file with another size in its header."""
    frame = data.index(b"\xff\xc2" if b"\xff\xc2" in data else START_OF_FRAME)
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


def scanned_jpeg(size: int, *, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.new("RGB", (size, size), (90, 90, 90)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xc4")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def app1(length: int) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", length + 2) + b"Exif\0\0" + bytes(length - 6)


def resized_webp(data: bytes, width: int, height: int) -> bytes:
    """A lossless WebP of one colour with another size; its pixels take no more bytes."""
    assert data[12:16] == b"VP8L"
    rest = struct.unpack("<I", data[21:25])[0] >> 28
    return data[:21] + struct.pack("<I", (width - 1) | (height - 1) << 14 | rest << 28) + data[25:]


def bmp_file(width: int, height: int, *, depth: int = 24, packing: int = 0, body: bytes = b"") -> bytes:
    """A BMP. packing: 0 none, 1 runs of palette entries."""
    palette = bytes(1_024 if depth == 8 else 0)
    start = 54 + len(palette)
    sizes = (start + len(body), 0, start, 40, width, height, 1, depth, packing, len(body), 0, 0, len(palette) // 4, 0)
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", *sizes) + palette + body


def bmp_of_runs(size: int) -> bytes:
    """A square BMP whose rows are runs of at most 255 pixels, which Pillow unpacks in Python."""
    row = b"".join(bytes([min(255, size - x), 0]) for x in range(0, size, 255)) + b"\0\0"
    return bmp_file(size, size, depth=8, packing=1, body=row * size + b"\0\1")


def tiff_file(width: int, height: int, strip: bytes, *, compression: int = 1, strip_offset: int | None = None) -> bytes:
    """A TIFF of one strip, RGB. compression: 1 none, 8 deflate."""
    offset = 8 if strip_offset is None else strip_offset
    strips = ((273, 4, 1, offset), (279, 4, 1, len(strip)))
    return tiff_of_fields(width, height, strip, strips, compression=compression, strip_rows=height)


def tiff_of_strips(width: int, height: int) -> bytes:
    """A TIFF with a strip for each row; all are the same bytes."""
    strip, table = bytes(width * 3), 4 * height
    offsets, lengths = struct.pack("<I", 8) * height, struct.pack("<I", len(strip)) * height
    place = 8 + len(strip)
    strips = ((273, 4, height, place), (279, 4, height, place + table))
    return tiff_of_fields(width, height, strip + offsets + lengths, strips, compression=1, strip_rows=1)


def tiff_of_fields(
    width: int,
    height: int,
    body: bytes,
    strips: tuple[tuple[int, int, int, int], ...],
    *,
    compression: int,
    strip_rows: int,
) -> bytes:
    """Header, body, directory. A field is tag, type (3: 16 bits, 4: 32), count, and value or its place."""
    plain = {256: width, 257: height, 258: 8, 259: compression, 262: 2, 277: 3, 278: strip_rows}
    fields = sorted([(tag, 4, 1, value) for tag, value in plain.items()] + list(strips))
    directory = struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", *field) for field in fields) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory


def deflated_zeros(length: int) -> bytes:
    """A zlib stream of so many zero bytes: one deflated megabyte, repeated, costs no time."""
    whole, rest = divmod(length, 1_000_000)
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    block = packer.compress(bytes(1_000_000)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    checksum = struct.pack(">I", (length % 65_521) << 16 | 1)  # Adler-32 of zeros
    return b"\x78\xda" + block * whole + end.compress(bytes(rest)) + end.flush() + checksum
