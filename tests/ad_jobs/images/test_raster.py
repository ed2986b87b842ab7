"""PNG, JPEG and TIFF alike: depth, colour, alpha, orientation, windows; and bombs."""

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
from rasterkit import COLUMNS, GREY8, GREY16, HALF_STEP, LIMITS, RGB8, RGB16, ROWS, policy, refused, saved, shown, tiff

from ad_jobs.errors import ErrorCode
from ad_jobs.images.decode import decode, read_header
from ad_jobs.schema import HEADER

RNG = np.random.default_rng(6)


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
    # One pixel is in colour.
    equal[3, 5, 1] ^= 1
    frame = decode(saved(Image.fromarray(equal), "PNG"), policy(channels=3), LIMITS).frames[0]
    assert frame.pixels.shape == (3, ROWS, COLUMNS)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_over_black(mode: str) -> None:
    alpha8 = RNG.integers(0, 256, (ROWS, COLUMNS), dtype=np.uint8)
    base = Image.fromarray(RGB8 if mode == "RGBA" else GREY8)
    base.putalpha(Image.fromarray(alpha8))
    opaque = alpha8 / 255
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
        # As stored.
        assert (decoded.header["rows"], decoded.header["columns"]) == (ROWS, COLUMNS)
    # Blocks survive JPEG.
    flat = np.repeat(np.repeat(GREY8 // 2 + 64, 8, 0), 8, 1)
    data = saved(Image.fromarray(flat), "JPEG", quality=95, exif=exif)
    assert np.abs(shown(data, **turned) - (upright // 2 + 64) / 255).max() < 0.1


def test_windows_apply_to_grey_and_not_to_colour() -> None:
    window = (1000.0, 30000.0)
    expected = np.clip((GREY16 - 1000.0) / 29000, 0, 1)
    assert np.allclose(shown(imagecodecs.png_encode(GREY16), window=window), expected, atol=HALF_STEP)
    assert np.array_equal(shown(imagecodecs.png_encode(RGB16), window=window) * 65535, RGB16)
    spread = shown(imagecodecs.png_encode((GREY16 // 64).astype(np.uint16)), window="percentile")
    assert spread.min() == 0.0
    assert spread.max() == 1.0


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


@pytest.mark.parametrize(("bits", "above"), [(1, 0), (2, 0), (2, 0x300), (4, 0), (4, 0x300), (8, 0), (8, 0x300)])
def test_a_transparent_grey_of_any_depth_is_black(bits: int, above: int) -> None:
    levels = 2**bits
    values = (np.arange(ROWS * COLUMNS) % levels).astype(np.uint8).reshape(ROWS, COLUMNS)
    loose = np.unpackbits(values[..., None], axis=2)[..., -bits:].reshape(ROWS, -1)
    rows = b"".join(b"\x00" + np.packbits(row).tobytes() for row in loose)
    for transparent in {0, levels // 2, levels - 1}:
        # Of the two bytes the lowest bits count.
        data = png_of(0, bits, rows, struct.pack(">H", transparent | above))
        expected = np.where(values == transparent, 0, values / (levels - 1))
        assert np.allclose(shown(data), expected, atol=HALF_STEP)


def test_a_transparent_colour_counts_its_lowest_bits() -> None:
    rows = b"".join(b"\x00" + row.tobytes() for row in RGB8)
    key = [int(part) | 0x100 for part in RGB8[3, 4]]
    expected = RGB8 / 255 * (RGB8[3, 4] != RGB8).any(axis=2, keepdims=True)
    assert np.allclose(shown(png_of(2, 8, rows, struct.pack(">3H", *key))), expected, atol=HALF_STEP)


def png_of(colour_type: int, bits: int, rows: bytes, transparent: bytes) -> bytes:
    """A PNG of filtered rows with a tRNS chunk."""
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", COLUMNS, ROWS, bits, colour_type, 0, 0, 0))
    body = chunk(b"tRNS", transparent) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def png_with(body: bytes, bits: int, colour_type: int = 0, interlaced: int = 0) -> bytes:
    """A PNG of that zlib stream."""
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", COLUMNS, ROWS, bits, colour_type, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("bits", "colour_type"), [(1, 0), (4, 0), (8, 0), (16, 0), (8, 2), (8, 6), (16, 2)])
def test_a_png_damaged_within_its_zlib_stream_or_short_of_rows_is_refused(bits: int, colour_type: int) -> None:
    row = (COLUMNS * {0: 1, 2: 3, 6: 4}[colour_type] * bits + 7) // 8
    rows = b"".join(b"\x00" + RNG.bytes(row) for _ in range(ROWS))
    whole = zlib.compress(rows)
    assert shown(png_with(whole, bits, colour_type)).any()
    # A block of an unknown type, checksums of chunks being right; a filter that PNG 9.2 does not know.
    for broken in (whole[:2] + b"\x07" + whole[3:], zlib.compress(b"\x09" + rows[1:])):
        assert refused(png_with(broken, bits, colour_type)).code == ErrorCode.CORRUPT
    half = zlib.compress(rows[: len(rows) // 2])
    for short in (half, whole[: len(whole) // 2]):
        assert refused(png_with(short, bits, colour_type)).code in (ErrorCode.TRUNCATED, ErrorCode.CORRUPT)


def test_an_interlaced_png_has_the_rows_of_its_seven_passes() -> None:
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    reduced = [GREY8[top::down, left::across] for left, top, across, down in passes]
    rows = b"".join(b"\x00" + row.tobytes() for part in reduced for row in part if part.size)
    assert np.allclose(shown(png_with(zlib.compress(rows), 8, interlaced=1)), GREY8 / 255, atol=HALF_STEP)
    assert refused(png_with(zlib.compress(rows[:-1]), 8, interlaced=1)).code == ErrorCode.TRUNCATED
