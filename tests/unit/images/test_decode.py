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
from mlcd_core.tables import RowStatus

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


def test_a_truncated_webp_is_a_decoder_error():
    data = encoded(photo(), "WEBP")
    assert status_of(data[: len(data) // 2]) == RowStatus.DECODE_ERROR


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


@settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(8, 48), seed=st.integers(0, 9))
def test_pixels_equal_torchvision_bit_for_bit(width, height, size, seed):
    if max(width, height) > 20 * min(width, height):
        width = height
    image = photo(width, height, seed=seed)
    np.testing.assert_array_equal(decoded_pixels(encoded(image, "PNG"), size), torchvision_reference(image, size))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_each_format_equals_its_own_pil_decoding(kind):
    data = encoded(photo(300, 200), kind)
    np.testing.assert_array_equal(decoded_pixels(data), torchvision_reference(Image.open(io.BytesIO(data)), 32))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("CMYK", "JPEG"), ("L", "JPEG"), ("L", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("1", "PNG")],
)
def test_each_colour_mode_is_converted_before_the_resize(mode, kind):
    data = encoded(photo(mode=mode), kind)
    reference = torchvision_reference(Image.open(io.BytesIO(data)).convert("RGB"), 32)
    np.testing.assert_array_equal(decoded_pixels(data), reference)


def test_palette_transparency_in_bytes_decodes_without_a_warning():
    image = photo(mode="P")
    data = encoded(image, "PNG", transparency=bytes(range(200)))
    np.testing.assert_array_equal(decoded_pixels(data), torchvision_reference(image, 32))


def test_16_bit_gray_keeps_its_high_byte_where_pil_would_clip_to_white():
    gray = np.asarray(photo(mode="L"))
    data = encoded(Image.fromarray(gray.astype(np.uint16) * 257), "PNG")
    np.testing.assert_array_equal(decoded_pixels(data), torchvision_reference(Image.fromarray(gray), 32))


def test_an_animation_gives_its_first_frame():
    frames = [photo(seed=i, mode="P") for i in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decoded_pixels(data), torchvision_reference(frames[0], 32))


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
    difference = decoded_pixels(encoded(image, "PNG")).astype(int) - torchvision_reference(image, 32).astype(int)
    assert abs(difference).max() <= 1  # the band's edges are float32 inside PIL
