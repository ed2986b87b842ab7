"""Strips and tiles of a TIFF: damage that no decoder tells, and code streams that announce another size."""

from __future__ import annotations

import struct
from io import BytesIO

import imagecodecs
import numpy as np
import pytest
import tifffile
from rasterkit import LIMITS, policy, refused, tiff

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
