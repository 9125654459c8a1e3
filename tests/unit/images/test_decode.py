"""Decoding: a status for every bad image, and the pixels of a plain PIL pipeline for every good one."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlcd_core.images.decode import decode_images
from mlcd_core.images.decode_cost import cost_per_pixel
from mlcd_core.tables import RowStatus
from tests.unit.images.hostile import scanned_jpeg

HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


def photo(width=120, height=90, mode="RGB", seed=0):
    """Smooth colours with some noise, so that JPEG and resizing have something to do."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    pixels = np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind, **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def status_of(data, *, max_pixels=1_000_000):
    decoded = decode_images([data], image_size=16, max_pixels=max_pixels)
    assert decoded.status_B.dtype == np.int8
    if decoded.status_B[0] != RowStatus.OK:
        assert not decoded.pixels_BCHW.any()
    return RowStatus(decoded.status_B[0])


def decoded_pixels(data, size=32):
    decoded = decode_images([data], image_size=size, max_pixels=10**7)
    assert decoded.status_B.tolist() == [RowStatus.OK]
    return decoded.pixels_BCHW[0].transpose(1, 2, 0)


def pil_reference(image, size):
    """RGB first, bicubic resize of the short side, centre crop, by Pillow alone."""
    rgb = image.convert("RGB")
    short = min(rgb.size)
    width, height = (size if side == short else int(size * side / short) for side in rgb.size)
    rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(rgb.crop((left, top, left + size, top + size)))


def torchvision_reference(image, size):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    return np.asarray(Compose([Resize(size, InterpolationMode.BICUBIC), CenterCrop(size)])(image.convert("RGB")))


def png_header(width, height):
    """A PNG that claims a size and holds nothing."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (None, RowStatus.NULL_BYTES),
        (b"", RowStatus.NOT_AN_IMAGE),
        (HTML, RowStatus.NOT_AN_IMAGE),
        (b"\xff\xd8\xff", RowStatus.NOT_AN_IMAGE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", RowStatus.NOT_AN_IMAGE),
    ],
)
def test_rows_that_are_no_image_get_a_status_and_zero_pixels(data, status):
    assert status_of(data) == status


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9, 0.97])
def test_a_truncated_file_is_truncated_wherever_it_was_cut(kind, share):
    data = encoded(photo(), kind)
    assert status_of(data[: int(len(data) * share)]) == RowStatus.TRUNCATED


def test_two_missing_bytes_of_a_jpeg_are_enough():
    assert status_of(encoded(photo(), "JPEG")[:-2]) == RowStatus.TRUNCATED


def test_a_png_that_lost_only_what_follows_its_pixels_is_whole():
    data = encoded(photo(), "PNG")
    assert status_of(data[: data.rindex(b"IEND") - 4]) == RowStatus.OK
    assert status_of(data[: data.rindex(b"IEND") - 40]) == RowStatus.TRUNCATED


@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_shorter_than_it_says_is_truncated_and_a_broken_one_is_not(lossless):
    data = encoded(photo(), "WEBP", lossless=lossless)
    assert status_of(data[: len(data) // 2]) == RowStatus.TRUNCATED
    assert status_of(data[:40] + np.random.default_rng(2).bytes(len(data) - 40)) == RowStatus.DECODE_ERROR


def test_flipped_bytes_inside_png_data_are_a_decoder_error():
    data = bytearray(encoded(photo(), "PNG"))
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(255 - byte for byte in data[middle : middle + 40])
    assert status_of(bytes(data)) in (RowStatus.DECODE_ERROR, RowStatus.TRUNCATED)


@pytest.mark.parametrize(("width", "height"), [(1001, 1000), (20_000, 20_000), (12_000, 9_000)])
def test_too_many_pixels_are_seen_in_the_header(width, height):
    assert status_of(png_header(width, height)) == RowStatus.TOO_MANY_PIXELS


def test_a_limit_above_pils_warning_still_decodes_without_a_warning():
    image = Image.new("1", (10_000, 9_000))
    assert status_of(encoded(image, "PNG", compress_level=1), max_pixels=10**9) == RowStatus.OK


def test_bad_images_print_nothing_and_leave_their_neighbours_alone(capfd):
    good = encoded(photo(), "PNG")
    jpeg = encoded(photo(), "JPEG")
    decoded = decode_images([good, None, HTML, jpeg[:-50], good], image_size=24, max_pixels=10**6)
    assert decoded.status_B.tolist() == [0, 1, 3, 4, 0]
    np.testing.assert_array_equal(decoded.pixels_BCHW[0], decoded.pixels_BCHW[4])
    assert capfd.readouterr() == ("", "")


def test_no_images_give_empty_arrays():
    decoded = decode_images([], image_size=8, max_pixels=100)
    assert decoded.pixels_BCHW.shape == (0, 3, 8, 8)
    assert decoded.status_B.shape == (0,)


def test_threads_change_nothing():
    images = [encoded(photo(seed=i), kind) for i, kind in enumerate(["PNG", "JPEG", "WEBP"] * 4)] + [None, HTML]
    alone = decode_images(images, image_size=32, max_pixels=10**6)
    with ThreadPoolExecutor(4) as pool:
        together = decode_images(images, image_size=32, max_pixels=10**6, pool=pool)
    np.testing.assert_array_equal(alone.pixels_BCHW, together.pixels_BCHW)
    np.testing.assert_array_equal(alone.status_B, together.status_B)


MODES = {
    "JPEG": ["RGB", "L", "CMYK"],
    "PNG": ["RGB", "L", "LA", "RGBA", "P", "1"],
    "WEBP": ["RGB", "RGBA", "L"],
    "GIF": ["P", "L", "1"],
    "BMP": ["RGB", "L", "P", "1"],
    "TIFF": ["RGB", "L", "RGBA", "CMYK", "P", "1", "F", "I"],
}


@settings(deadline=None, max_examples=150)
@given(
    kind_mode=st.sampled_from([(kind, mode) for kind, modes in MODES.items() for mode in modes]),
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(8, 48),
    seed=st.integers(0, 9),
)
def test_pixels_of_every_format_and_mode_equal_pillows_own_bit_for_bit(kind_mode, width, height, size, seed):
    kind, mode = kind_mode
    if max(width, height) > 20 * min(width, height):
        width = height
    image = photo(width, height, seed=seed)
    data = encoded(image.convert("L").convert(mode) if mode in "FI" else image.convert(mode), kind)
    np.testing.assert_array_equal(decoded_pixels(data, size), pil_reference(Image.open(io.BytesIO(data)), size))


@pytest.mark.parametrize("shape", [(90, 61), (61, 90), (64, 64), (33, 200), (500, 333), (7, 9)])
@pytest.mark.parametrize("size", [32, 33, 64])
def test_pixels_equal_torchvision_bit_for_bit(shape, size):
    image = photo(*shape)
    np.testing.assert_array_equal(decoded_pixels(encoded(image, "PNG"), size), torchvision_reference(image, size))


def test_palette_transparency_in_bytes_decodes_without_a_warning():
    image = photo(mode="P")
    data = encoded(image, "PNG", transparency=bytes(range(200)))
    np.testing.assert_array_equal(decoded_pixels(data), pil_reference(image, 32))


def test_16_bit_gray_keeps_its_high_byte_where_pil_would_clip_to_white():
    gray = np.asarray(photo(mode="L"))
    data = encoded(Image.fromarray(gray.astype(np.uint16) * 257), "PNG")
    np.testing.assert_array_equal(decoded_pixels(data), pil_reference(Image.fromarray(gray), 32))


def test_an_animation_gives_its_first_frame():
    frames = [photo(seed=i, mode="P") for i in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decoded_pixels(data), pil_reference(frames[0], 32))


def test_an_image_of_the_right_size_is_not_resampled():
    image = photo(32, 32)
    np.testing.assert_array_equal(decoded_pixels(encoded(image, "PNG"), 32), np.asarray(image))


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (2, 30_000)])
def test_extreme_shapes_are_cut_before_the_resize(size, monkeypatch):
    """The whole resize of 1 x 10,000 would make 502 million pixels: 1.5 GB and seconds."""
    resize, made = Image.Image.resize, []

    def watch(image, size, *args, **kwargs):
        made.append(size[0] * size[1])
        return resize(image, size, *args, **kwargs)

    data = encoded(photo(*size), "PNG")
    monkeypatch.setattr(Image.Image, "resize", watch)
    decoded_pixels(data, 224)
    assert max(made) < 10 * 224 * 224


@pytest.mark.parametrize(("width", "height"), [(1_200, 40), (40, 1_200), (100, 3), (505, 25), (1, 60)])
def test_cutting_a_long_image_before_the_resize_changes_no_pixel(width, height):
    image = photo(width, height)
    difference = decoded_pixels(encoded(image, "PNG")).astype(int) - pil_reference(image, 32).astype(int)
    assert abs(difference).max() <= 1  # the band's edges are float32 inside PIL


def test_exif_orientation_is_ignored():
    turned = Image.Exif()
    turned[0x0112] = 6
    plain = encoded(photo(), "JPEG")
    np.testing.assert_array_equal(decoded_pixels(encoded(photo(), "JPEG", exif=turned)), decoded_pixels(plain))


def both_ways(data, size):
    ways = [decode_images([data], image_size=size, max_pixels=10**8, mode=mode) for mode in ("exact", "fast")]
    assert [way.status_B.tolist() for way in ways] == [[RowStatus.OK]] * 2
    return [way.pixels_BCHW[0].transpose(1, 2, 0) for way in ways]


def smooth_photo(width, height, mode="RGB"):
    """Without noise: what a camera writes has little of it at the size of a pixel."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("shape", [(640, 480), (479, 641), (301, 1201), (1201, 301), (900, 899)])
def test_fast_decoding_of_a_large_jpeg_is_other_pixels_and_nearly_the_same_picture(shape, mode):
    exact, fast = both_ways(encoded(smooth_photo(*shape, mode), "JPEG", quality=90), 32)
    error = exact.astype(float) - fast
    assert error.any()
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 45  # half a pixel of shift gives 30


def test_fast_decoding_reads_a_large_jpeg_at_a_fraction_of_its_size(monkeypatch):
    sizes = []
    resize = Image.Image.resize

    def watch(image, *args, **kwargs):
        sizes.append(image.size)
        return resize(image, *args, **kwargs)

    data = encoded(smooth_photo(1_000, 801), "JPEG")
    monkeypatch.setattr(Image.Image, "resize", watch)
    both_ways(data, 64)
    assert sizes == [(1_000, 801), (250, 201)]


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("PNG", (640, 480)), ("WEBP", (640, 480)), ("TIFF", (640, 480)), ("JPEG", (63, 90)), ("JPEG", (2_000, 40))],
)
def test_fast_decoding_of_other_formats_of_small_and_of_long_images_is_exact(kind, shape):
    exact, fast = both_ways(encoded(smooth_photo(*shape), kind), 32)
    np.testing.assert_array_equal(exact, fast)


@pytest.mark.parametrize(
    ("width", "limit", "status"),
    [
        (5_050, 64_000_000, RowStatus.TRUNCATED),  # 25.5 million pixels, each as costly as 2.5 of a JPEG
        (5_070, 64_000_000, RowStatus.TOO_MANY_PIXELS),
        (5_070, 65_000_000, RowStatus.TRUNCATED),
        (1_000, 1_000_000, RowStatus.TRUNCATED),  # a limit below the usual one counts pixels alone
        (1_001, 1_000_000, RowStatus.TOO_MANY_PIXELS),
    ],
)
def test_a_png_has_fewer_pixels_than_a_jpeg_unless_more_than_usual_are_allowed(width, limit, status):
    assert status_of(png_header(width, width), max_pixels=limit) == status


@pytest.mark.parametrize(("scans", "status"), [(10, RowStatus.OK), (300, RowStatus.TOO_MANY_PIXELS)])
def test_scans_of_a_progressive_jpeg_cost(scans, status):
    data = scanned_jpeg(1_000, scans=scans)
    assert status_of(data, max_pixels=64_000_000) == status


def test_thumbnails_and_pictures_behind_the_first_are_no_scans():
    preview = encoded(photo(40, 30), "JPEG", progressive=True)
    exif = b"\xff\xe1" + struct.pack(">H", len(preview) + 8) + b"Exif\0\0" + preview
    plain = encoded(photo(), "JPEG")
    for data, cost in ((plain, 1), (plain[:2] + exif * 9 + plain[2:] + preview * 9, 1), (preview, 2.5)):
        with Image.open(io.BytesIO(data)) as image:
            assert cost_per_pixel(image, data) == cost
