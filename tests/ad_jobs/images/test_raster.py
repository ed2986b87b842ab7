"""PNG, JPEG and TIFF in, numbers out: depth, colour, alpha, orientation, pages; and bombs."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.decode import decode, preview, read_header
from ad_jobs.images.policy import Limits, PixelPolicy, Window
from ad_jobs.schema import HEADER

ROWS, COLUMNS = 12, 20
LIMITS = Limits()
HALF_STEP = 0.5 / 65535 + 1e-9
RNG = np.random.default_rng(5)
GREY8 = RNG.integers(0, 256, (ROWS, COLUMNS), dtype=np.uint8)
RGB8 = RNG.integers(0, 256, (ROWS, COLUMNS, 3), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (ROWS, COLUMNS), dtype=np.uint16)
RGB16 = RNG.integers(0, 65536, (ROWS, COLUMNS, 3), dtype=np.uint16)
ALPHA8 = RNG.integers(0, 256, (ROWS, COLUMNS), dtype=np.uint8)


def policy(channels: int = 3, window: Window = "dicom", rows: int = ROWS, columns: int = COLUMNS) -> PixelPolicy:
    return PixelPolicy(channels=channels, height_px=rows, width_px=columns, window=window)


def shown(data: bytes, **options: Any) -> np.ndarray:
    """The only frame's values in [0, 1], [rows, columns] or [rows, columns, 3], at its own size."""
    (frame,) = decode(data, policy(**options), LIMITS).frames
    values = frame.pixels.transpose(1, 2, 0) / 65535
    return values[..., 0] if values.shape[2] == 1 else values


def refused(data: bytes, limits: Limits = LIMITS) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, policy(), limits)
    return caught.value


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    stream = BytesIO()
    tifffile.imwrite(stream, pixels, **{"photometric": "minisblack", **options})
    return stream.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))


@pytest.mark.parametrize("encode", [imagecodecs.png_encode, tiff], ids=["png", "tiff"])
def test_sixteen_bits_of_grey_are_kept(encode: Any) -> None:
    assert np.array_equal(shown(encode(GREY16)) * 65535, GREY16)


@pytest.mark.parametrize("kind", ["png", "tiff", "tiff-planar", "tiff-lzw"])
def test_sixteen_bits_of_colour_are_kept(kind: str) -> None:
    data = {
        "png": lambda: imagecodecs.png_encode(RGB16),
        "tiff": lambda: tiff(RGB16, photometric="rgb"),
        "tiff-planar": lambda: tiff(RGB16.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
        "tiff-lzw": lambda: tiff(RGB16, photometric="rgb", compression="lzw", predictor=True, tile=(16, 16)),
    }[kind]()
    assert np.array_equal(shown(data) * 65535, RGB16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_eight_bits_of_grey_and_colour(kind: str) -> None:
    assert np.allclose(shown(saved(Image.fromarray(GREY8), kind)), GREY8 / 255, atol=HALF_STEP)
    assert np.allclose(shown(saved(Image.fromarray(RGB8), kind)), RGB8 / 255, atol=HALF_STEP)


def test_a_grey_source_has_one_channel_and_a_grey_detector_sees_luma() -> None:
    frame = decode(saved(Image.fromarray(GREY8), "PNG"), policy(channels=3), LIMITS).frames[0]
    assert frame.pixels.shape == (1, ROWS, COLUMNS)
    luma = shown(saved(Image.fromarray(RGB8), "PNG"), channels=1)
    assert np.allclose(luma, RGB8 @ [0.299, 0.587, 0.114] / 255, atol=HALF_STEP)


def test_a_colour_source_whose_channels_are_equal_is_grey() -> None:
    equal = np.repeat(GREY8[..., None], 3, axis=2)
    frame = decode(saved(Image.fromarray(equal), "PNG"), policy(channels=3), LIMITS).frames[0]
    assert frame.pixels.shape == (1, ROWS, COLUMNS)
    assert np.allclose(frame.pixels[0] / 65535, GREY8 / 255, atol=HALF_STEP)
    equal[3, 5, 1] ^= 1  # one pixel is in colour
    frame = decode(saved(Image.fromarray(equal), "PNG"), policy(channels=3), LIMITS).frames[0]
    assert frame.pixels.shape == (3, ROWS, COLUMNS)


@pytest.mark.parametrize("pixels", [GREY8, RGB8], ids=["grey", "colour"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_what_pillow_makes_of_it(pixels: np.ndarray, progressive: bool) -> None:
    data = saved(Image.fromarray(pixels), "JPEG", quality=90, progressive=progressive)
    assert np.allclose(shown(data), np.asarray(Image.open(BytesIO(data))) / 255, atol=HALF_STEP)


def test_cmyk_jpeg_becomes_rgb() -> None:
    cmyk = Image.fromarray(RGB8).convert("CMYK")
    data = saved(cmyk, "JPEG", quality=95, subsampling=0)
    expected = np.asarray(Image.open(BytesIO(data)).convert("RGB")) / 255
    assert np.allclose(shown(data), expected, atol=HALF_STEP)
    assert decode(data, policy(), LIMITS).header["photometric"] == "CMYK"


def test_a_12_bit_jpeg_keeps_its_levels() -> None:
    values = np.linspace(0, 4095, ROWS * COLUMNS).astype(np.uint16).reshape(ROWS, COLUMNS)
    data = imagecodecs.jpeg8_encode(values, level=100, bitspersample=12)
    assert np.abs(shown(data) - values / 4095).max() < 4 / 4095
    assert decode(data, policy(), LIMITS).header["bits"] == 12


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_over_black(mode: str) -> None:
    base = Image.fromarray(RGB8 if mode == "RGBA" else GREY8)
    base.putalpha(Image.fromarray(ALPHA8))
    opaque = ALPHA8 / 255
    expected = RGB8 / 255 * opaque[..., None] if mode == "RGBA" else GREY8 / 255 * opaque
    assert np.allclose(shown(saved(base, "PNG")), expected, atol=2 * HALF_STEP)


def test_sixteen_bit_alpha_and_tiff_alpha() -> None:
    alpha = RNG.integers(0, 65536, (ROWS, COLUMNS, 1), dtype=np.uint16)
    rgba = np.concatenate([RGB16, alpha], axis=2)
    expected = RGB16 / 65535 * (alpha / 65535)
    assert np.allclose(shown(imagecodecs.png_encode(rgba)), expected, atol=2 * HALF_STEP)
    unassociated = tiff(rgba, photometric="rgb", extrasamples=["unassalpha"])
    assert np.allclose(shown(unassociated), expected, atol=2 * HALF_STEP)
    associated = tiff(rgba, photometric="rgb", extrasamples=["assocalpha"])
    assert np.allclose(shown(associated), RGB16 / 65535, atol=HALF_STEP)


def test_palette_one_bit_and_transparent_colour() -> None:
    palette = Image.fromarray(RGB8).quantize(16)
    expected = np.asarray(palette.convert("RGB")) / 255
    assert np.allclose(shown(saved(palette, "PNG")), expected, atol=HALF_STEP)
    assert np.allclose(shown(saved(palette, "TIFF")), expected, atol=1 / 255)
    bits = Image.fromarray(GREY8).convert("1")
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(shown(saved(bits, kind)), np.asarray(bits).astype(float))
    keyed = saved(Image.fromarray(RGB8), "PNG", transparency=tuple(int(v) for v in RGB8[3, 4]))
    expected = RGB8 / 255 * (RGB8[3, 4] != RGB8).any(axis=2, keepdims=True)
    assert np.allclose(shown(keyed), expected, atol=HALF_STEP)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).T,
        8: np.rot90,
    }[orientation](GREY8)
    turned = {"rows": upright.shape[0], "columns": upright.shape[1]}
    for data in (
        saved(Image.fromarray(GREY8), "PNG", exif=exif),
        tiff(GREY8, extratags=[(274, "H", 1, orientation, True)]),
    ):
        decoded = decode(data, policy(**turned), LIMITS)
        assert np.allclose(decoded.frames[0].pixels[0] / 65535, upright / 255, atol=HALF_STEP)
        assert decoded.frames[0].geometry[:2] == upright.shape
        assert (decoded.header["rows"], decoded.header["columns"]) == (ROWS, COLUMNS)  # as stored
    flat = np.repeat(np.repeat(GREY8 // 2 + 64, 8, 0), 8, 1)  # blocks survive JPEG
    data = saved(Image.fromarray(flat), "JPEG", quality=95, exif=exif)
    assert np.abs(shown(data, **turned) - (upright // 2 + 64) / 255).max() < 0.1


def test_broken_exif_does_not_cost_the_pixels() -> None:
    data = saved(Image.fromarray(GREY8), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert shown(data).shape == (ROWS, COLUMNS)


def test_windows_apply_to_grey_and_not_to_colour() -> None:
    window = (1000.0, 30000.0)
    expected = np.clip((GREY16 - 1000.0) / 29000, 0, 1)
    assert np.allclose(shown(imagecodecs.png_encode(GREY16), window=window), expected, atol=HALF_STEP)
    assert np.array_equal(shown(imagecodecs.png_encode(RGB16), window=window) * 65535, RGB16)
    spread = shown(imagecodecs.png_encode((GREY16 // 64).astype(np.uint16)), window="percentile")
    assert spread.min() == 0.0
    assert spread.max() == 1.0


def test_pages_are_frames_with_their_own_geometry() -> None:
    stream = BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for page in (GREY8, GREY8[:6], GREY8[::-1]):
            writer.write(page, photometric="minisblack", metadata=None)
        writer.write(GREY8[:3, :5], photometric="minisblack", subfiletype=1, metadata=None)  # a thumbnail
    decoded = decode(stream.getvalue(), policy(), LIMITS)
    assert [(frame.index, frame.geometry.rows) for frame in decoded.frames] == [(0, ROWS), (1, 6), (2, ROWS)]
    assert np.allclose(decoded.frames[2].pixels[0] / 65535, GREY8[::-1] / 255, atol=HALF_STEP)
    assert refused(stream.getvalue(), Limits(max_frames=2)).code == ErrorCode.TOO_MANY_FRAMES
    assert read_header(stream.getvalue())["frames"] == 3


def test_tiff_kinds() -> None:
    assert np.allclose(shown(tiff(GREY8, photometric="miniswhite")), 1 - GREY8 / 255, atol=HALF_STEP)
    assert np.allclose(
        shown(tiff(GREY16.astype(np.int32).astype(np.int16))),
        (GREY16.astype(np.int16) + 32768.0) / 65535,
        atol=HALF_STEP,
    )
    twelve = GREY16 // 16
    assert np.allclose(shown(tiff(GREY8, bigtiff=True)), GREY8 / 255, atol=HALF_STEP)
    assert np.allclose(shown(tiff(GREY8, byteorder=">")), GREY8 / 255, atol=HALF_STEP)
    assert np.allclose(shown(tiff(twelve, bitspersample=12)), twelve / 4095, atol=HALF_STEP)
    ink = RNG.integers(0, 256, (ROWS, COLUMNS, 4), dtype=np.uint8)
    expected = (1 - ink[..., :3] / 255) * (1 - ink[..., 3:] / 255)
    assert np.allclose(shown(tiff(ink, photometric="separated")), expected, atol=HALF_STEP)


def test_float_tiff_takes_its_own_range_beyond_the_unit_interval_and_must_be_finite() -> None:
    unit = RNG.random((ROWS, COLUMNS), dtype=np.float32)
    assert np.allclose(shown(tiff(unit)), unit, atol=HALF_STEP)
    wide = unit * 900 - 100
    expected = (wide - wide.min()) / (wide.max() - wide.min())
    assert np.allclose(shown(tiff(wide)), expected, atol=HALF_STEP + 1e-6)
    assert np.allclose(shown(tiff(wide), window=(0.0, 500.0)), np.clip(wide / 500, 0, 1), atol=HALF_STEP)
    unit[2, 2] = np.inf
    assert refused(tiff(unit)).code == ErrorCode.NON_FINITE_PIXELS


def test_bombs_are_refused_by_their_headers() -> None:
    header = struct.pack(">LLBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    assert refused(png).code == ErrorCode.TOO_MANY_PIXELS
    jpeg = bytearray(saved(Image.fromarray(GREY8), "JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", 60_000, 60_000)
    assert refused(bytes(jpeg)).code == ErrorCode.TOO_MANY_PIXELS
    stored = bytearray(tiff(GREY8, compression="zlib"))
    with tifffile.TiffFile(BytesIO(bytes(stored))) as container:
        tag = container.pages[0].tags["ImageWidth"].valueoffset
    stored[tag : tag + 4] = struct.pack("<L", 3_000_000_000)
    assert refused(bytes(stored)).code == ErrorCode.TOO_MANY_PIXELS


@pytest.mark.parametrize(
    "data",
    [
        tiff(np.zeros((ROWS, COLUMNS, 5), np.uint8), planarconfig="contig"),
        tiff(np.zeros((ROWS, COLUMNS), np.complex64)),
    ],
    ids=["five samples", "complex"],
)
def test_pictures_that_no_detector_can_take(data: bytes) -> None:
    assert refused(data).code == ErrorCode.UNSUPPORTED_IMAGE


def test_damage_has_a_code() -> None:
    png = bytearray(saved(Image.fromarray(RGB8), "PNG"))
    png[60] ^= 0xFF
    assert refused(bytes(png)).code == ErrorCode.CORRUPT
    assert refused(b"").code == ErrorCode.EMPTY
    assert refused(b"GIF89a" + bytes(500)).code == ErrorCode.UNKNOWN_FORMAT


def test_header_of_a_picture() -> None:
    header = decode(imagecodecs.png_encode(GREY16), policy(), LIMITS).header
    assert list(header) == HEADER.names
    found = {name: value for name, value in header.items() if value is not None}
    assert found == {
        "rows": ROWS,
        "columns": COLUMNS,
        "bits": 16,
        "photometric": "MONOCHROME2",
        "transfer_syntax": "png",
    }
    for data in (saved(Image.fromarray(RGB8), "JPEG"), tiff(RGB8, photometric="rgb")):
        part = read_header(data)
        assert (part["rows"], part["columns"], part["bits"], part["header_error"]) == (ROWS, COLUMNS, 8, None)
        assert read_header(data[:20], len(data))["header_error"] == "truncated"


def test_preview_keeps_the_aspect_and_shows_the_frame() -> None:
    big = np.repeat(np.repeat(GREY8, 40, axis=0), 40, axis=1)
    picture = preview(saved(Image.fromarray(big), "PNG"), 0, policy(), LIMITS, max_side=COLUMNS * 4)
    assert picture.shape == (ROWS * 4, COLUMNS * 4, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture[2::4, 2::4, 0], GREY8)
    small = preview(saved(Image.fromarray(RGB8), "PNG"), 0, policy(), LIMITS)
    assert np.array_equal(small, RGB8)
    with pytest.raises(ImageError, match="no frame 1"):
        preview(saved(Image.fromarray(RGB8), "PNG"), 1, policy(), LIMITS)
