"""Strips and tiles of a TIFF: damage that no decoder tells, and code streams that announce another size."""

from __future__ import annotations

import struct
from io import BytesIO

import imagecodecs
import numpy as np
import pytest
import tifffile
from rasterkit import HALF_STEP, LIMITS, policy, refused, shown, tiff

from ad_jobs.errors import ErrorCode
from ad_jobs.images.decode import decode, read_header

_Y, _X = np.mgrid[0:64, 0:96]
GRAINY = (128 + 60 * np.sin(_X / 9) * np.cos(_Y / 13) + np.random.default_rng(1).normal(0, 6, _X.shape)).astype(
    np.uint8
)
NOISE = np.random.default_rng(2).integers(0, 256, GRAINY.shape, dtype=np.uint8)


def segment(data: bytes) -> tuple[int, int]:
    """Where the first strip or tile starts and ends."""
    page = tifffile.TiffFile(BytesIO(data)).pages[0]
    return page.dataoffsets[0], page.dataoffsets[0] + page.databytecounts[0]


def half_zeroed(data: bytes) -> bytes:
    start, end = segment(data)
    half = (start + end) // 2
    return data[:half] + bytes(end - half) + data[end:]


@pytest.mark.parametrize("form", [{}, {"tile": (32, 32)}, {"bigtiff": True}, {"rowsperstrip": 16}], ids=str)
def test_a_jpeg_segment_whose_second_half_is_zeroed_is_damaged(form: dict[str, object]) -> None:
    data = tiff(GRAINY, compression="jpeg", **form)
    assert decode(data, policy(), LIMITS).remarks == ()
    assert refused(half_zeroed(data)).code in (ErrorCode.TRUNCATED, ErrorCode.CORRUPT)


def test_a_jpeg_segment_that_lacks_its_end_alone_is_remarked_on() -> None:
    data = tiff(GRAINY, compression="jpeg", rowsperstrip=64)
    _, end = segment(data)
    assert data[end - 2 : end] == b"\xff\xd9"
    assert decode(data[: end - 2] + b"\0\0" + data[end:], policy(), LIMITS).remarks == ("damaged_end",)


@pytest.mark.parametrize("pixels", [GRAINY, NOISE], ids=["packed", "stored"])
@pytest.mark.parametrize("compression", ["zstd", "jpeg2000"])
def test_a_zeroed_half_of_a_packed_segment_is_corrupt(compression: str, pixels: np.ndarray) -> None:
    # What cannot be packed lies in a Zstandard frame as it is, and zeros there are valid pixels.
    data = tiff(pixels, compression=compression, rowsperstrip=64)
    assert decode(data, policy(), LIMITS).remarks == ()
    assert refused(half_zeroed(data)).code == ErrorCode.CORRUPT


def test_a_jpegxr_segment_that_is_cut_short_is_truncated() -> None:
    data = tiff(GRAINY, compression="jpegxr", rowsperstrip=64)
    assert decode(data, policy(), LIMITS).remarks == ()
    start, end = segment(data)
    counts = tifffile.TiffFile(BytesIO(data)).pages[0].tags[279]
    cut = bytearray(data)
    struct.pack_into("<H" if counts.dtype == 3 else "<L", cut, counts.valueoffset, (end - start) // 2)
    assert refused(bytes(cut)).code == ErrorCode.TRUNCATED


@pytest.mark.parametrize("level", [1, 10, 19])
def test_no_encoder_of_zstandard_stores_what_is_refused(level: int) -> None:
    rng = np.random.default_rng(3)
    for pixels in (NOISE, GRAINY, np.zeros_like(NOISE), rng.integers(0, 65536, (64, 96), dtype=np.uint16)):
        data = tiff(pixels, compression="zstd", compressionargs={"level": level})
        assert decode(data, policy(), LIMITS).remarks == ()


def test_a_black_jpeg2000_is_no_damage() -> None:
    data = tiff(np.zeros((512, 512), np.uint8), compression="jpeg2000", tile=(16, 16))
    assert decode(data, policy(), LIMITS).frames[0].constant


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "jpegxl"])
def test_a_code_stream_larger_than_its_strip_is_refused_before_it_is_decoded(compression: str) -> None:
    encode = {
        "jpeg": imagecodecs.jpeg8_encode,
        "jpeg2000": imagecodecs.jpeg2k_encode,
        "jpegxl": imagecodecs.jpegxl_encode,
    }
    large = bytes(encode[compression](np.zeros((3000, 3000), np.uint8)))
    data = tiff(GRAINY, compression=compression, rowsperstrip=64)
    start, _ = segment(data)
    page = tifffile.TiffFile(BytesIO(data)).pages[0]
    spoiled = bytearray(data + large)
    struct.pack_into("<L", spoiled, page.tags[273].offset + 8, len(data))
    struct.pack_into("<L", spoiled, page.tags[279].offset + 8, len(large))
    struct.pack_into("<H", spoiled, page.tags[279].offset + 2, 4)
    assert start > 0
    assert refused(bytes(spoiled)).code == ErrorCode.CORRUPT
    assert (
        refused(bytes(spoiled), LIMITS.model_copy(update={"max_pixels": 1_000_000})).code == ErrorCode.TOO_MANY_PIXELS
    )


def test_a_tile_larger_than_the_limit_is_refused_however_small_its_page() -> None:
    data = tiff(GRAINY, compression="zlib", tile=(1024, 1024))
    assert refused(data, LIMITS.model_copy(update={"max_pixels": 100_000})).code == ErrorCode.TOO_MANY_PIXELS


@pytest.mark.parametrize("subfile", [0, 1])
def test_directories_that_lead_in_a_circle_are_corrupt(subfile: int) -> None:
    data = bytearray(tiff(GRAINY, subfiletype=subfile))
    (first,) = struct.unpack_from("<L", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<L", data, first + 2 + 12 * entries, first)
    assert refused(bytes(data)).code == ErrorCode.CORRUPT
    assert read_header(bytes(data))["header_error"] == "corrupt"


FORMS = {
    "grey": GRAINY,
    "grey 16": GRAINY.astype(np.uint16) * 257,
    "colour": np.stack([GRAINY, GRAINY[::-1], GRAINY // 2], axis=-1),
    "colour 16": np.stack([GRAINY, GRAINY[::-1], GRAINY // 2], axis=-1).astype(np.uint16) * 257,
}
ENCODERS = {
    "jpeg": lambda pixels: imagecodecs.jpeg8_encode(pixels, level=95),
    "jpeg2000": lambda pixels: imagecodecs.jpeg2k_encode(pixels, 0, codecformat="j2k", reversible=True),
    "jpegxl": lambda pixels: imagecodecs.jpegxl_encode(pixels, lossless=True),
    "jpegxr": lambda pixels: imagecodecs.jpegxr_encode(pixels, 1.0),
    "png": imagecodecs.png_encode,
}


def with_segment(like: np.ndarray, compression: str, code: bytes) -> bytes:
    """A TIFF whose directory is that of pixels like those, and whose only strip is `code`."""
    colour = "rgb" if like.ndim == 3 else "minisblack"
    options = {"compression": "zlib" if compression == "jpeg" else compression, "rowsperstrip": 64}
    data = bytearray(tiff(like, photometric=colour, **options))
    tags = tifffile.TiffFile(BytesIO(bytes(data))).pages[0].tags
    for tag, value in ((273, len(data)), (279, len(code))):
        struct.pack_into("<HLL", data, tags[tag].offset + 2, 4, 1, value)
    if compression == "jpeg":
        struct.pack_into("<H", data, tags[259].valueoffset, 7)
    return bytes(data) + code


@pytest.mark.parametrize("like", FORMS)
@pytest.mark.parametrize("compression", ENCODERS)
def test_a_code_stream_of_other_samples_than_the_directory_says_is_corrupt(compression: str, like: str) -> None:
    for name, pixels in FORMS.items():
        if compression == "jpeg" and pixels.dtype != np.uint8:
            continue
        data = with_segment(FORMS[like], compression, bytes(ENCODERS[compression](pixels)))
        if name == like:
            assert decode(data, policy(), LIMITS).remarks == ()
        else:
            assert refused(data).code == ErrorCode.CORRUPT


@pytest.mark.parametrize("alpha", [None, 255, 100])
def test_webp_with_and_without_alpha(alpha: int | None) -> None:
    pixels = FORMS["colour"]
    if alpha is not None:
        pixels = np.dstack([pixels, np.full_like(GRAINY, alpha)])
    extra = {} if alpha is None else {"extrasamples": ["unassalpha"]}
    data = tiff(pixels, photometric="rgb", compression="webp", compressionargs={"lossless": True}, **extra)
    expected = FORMS["colour"] / 255 * (1 if alpha is None else alpha / 255)
    assert np.allclose(shown(data, rows=64, columns=96), expected, atol=2 * HALF_STEP)


def test_fewer_bits_than_the_directory_says_may_lie_in_words() -> None:
    twelve = GRAINY.astype(np.uint16) * 16
    code = imagecodecs.jpeg2k_encode(twelve, 0, codecformat="j2k", reversible=True, bitspersample=12)
    data = with_segment(twelve, "jpeg2000", bytes(code))
    assert np.allclose(shown(data, rows=64, columns=96), twelve / 65535, atol=HALF_STEP)


@pytest.mark.parametrize("compression", [None, "packbits", "lzw", "zlib", "zstd", "lzma"])
def test_a_predictor_is_of_the_compressions_that_have_one(compression: str | None) -> None:
    if compression in (None, "packbits"):
        # No writer calls it a predictor: a private tag, renamed.
        data = tiff(GRAINY, compression=compression, extratags=[(65000, 3, 1, 2, True)])
        data = data.replace(struct.pack("<HHL", 65000, 3, 1), struct.pack("<HHL", 317, 3, 1))
    else:
        data = tiff(GRAINY, compression=compression, predictor=True)
    assert tifffile.TiffFile(BytesIO(data)).pages[0].predictor == 2
    assert np.allclose(shown(data, rows=64, columns=96), GRAINY / 255, atol=HALF_STEP)
