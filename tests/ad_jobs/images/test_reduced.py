"""Frames decoded at a smaller size: the pixels that they had whole, but for what was lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dicomkit as kit
import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom.uid import JPEG2000, HTJ2KLossless, JPEG2000Lossless, JPEGBaseline8Bit
from reducedkit import (
    COLUMNS,
    FACTOR,
    GREY12,
    REDUCED,
    ROWS,
    SMOOTH,
    WHOLE,
    Array,
    colour,
    file,
    j2k,
    jpeg,
    stored,
    tiled,
)

from ad_jobs.images import reduced_jpeg2000
from ad_jobs.images.decode import decode
from ad_jobs.images.dicom import open_dicom
from ad_jobs.images.jpeg import open_jpeg
from ad_jobs.images.policy import PixelPolicy
from ad_jobs.images.reduction import factor

# Of full scale, on a smooth picture: a lossless one has lost what its low-pass takes off, a lossy one its own error.
LOSSLESS, LOSSY = 0.003, 0.006
# The reversible transformation rounds up, by half a step for each time that it halves: of 255 steps, that is seen.
EIGHT_BITS = 0.01


def worst(data: bytes, frame: int = 0) -> float:
    """The largest difference that reducing makes, of full scale; everything but the pixels is alike."""
    whole, reduced = decode(data, WHOLE, kit.LIMITS), decode(data, REDUCED, kit.LIMITS)
    assert (reduced.header, reduced.remarks) == (whole.header, whole.remarks)
    assert [one._replace(pixels=None) for one in reduced.frames] == [one._replace(pixels=None) for one in whole.frames]
    return float(np.abs(reduced.frames[frame].pixels.astype(float) - whole.frames[frame].pixels).max() / 65535)


def is_reduced(data: bytes) -> bool:
    opened = (open_jpeg if data.startswith(b"\xff\xd8") else open_dicom)(data, kit.LIMITS)
    return all(shown.grid is not None for shown in opened.read(REDUCED))


KINDS: dict[str, tuple[Callable[[], bytes], float]] = {
    "J2K, 12 bits": (lambda: file([j2k(GREY12, 12)], JPEG2000Lossless, GREY12, 12), LOSSLESS),
    "J2K, 16 bits": (lambda: file([j2k(stored(16), 16)], JPEG2000Lossless, stored(16)), LOSSLESS),
    "J2K, 8 bits": (lambda: file([j2k(stored(8), 8)], JPEG2000Lossless, stored(8)), EIGHT_BITS),
    "J2K, signed": (
        lambda: file([j2k(stored(12, -2048), 12)], JPEG2000Lossless, stored(12, -2048), 12, RescaleIntercept=-1024),
        LOSSLESS,
    ),
    "J2K, lossy": (lambda: file([j2k(GREY12, 12, 70)], JPEG2000, GREY12, 12), LOSSY),
    "J2K, MONOCHROME1": (
        lambda: file([j2k(GREY12, 12)], JPEG2000Lossless, GREY12, 12, PhotometricInterpretation="MONOCHROME1"),
        LOSSLESS,
    ),
    "J2K, window": (
        lambda: file([j2k(GREY12, 12)], JPEG2000Lossless, GREY12, 12, WindowCenter=2000, WindowWidth=6000),
        LOSSLESS,
    ),
    "J2K, VOI LUT": (
        lambda: file(
            [j2k(GREY12, 12)],
            JPEG2000Lossless,
            GREY12,
            12,
            VOILUTSequence=kit.lut(0, [round(65535 * (n / 4095) ** 2) for n in range(4096)], 16),
        ),
        LOSSLESS,
    ),
    "J2K, tiles": (lambda: file([tiled(stored(8), 128, 96)], JPEG2000Lossless, stored(8)), EIGHT_BITS),
    "J2K, colour": (
        lambda: file([j2k(colour(), 8, mct=True)], JPEG2000Lossless, colour(), PhotometricInterpretation="YBR_RCT"),
        EIGHT_BITS,
    ),
    "J2K, frames": (
        lambda: file([j2k(GREY12, 12), j2k(4095 - GREY12, 12)], JPEG2000Lossless, np.stack([GREY12] * 2), 12),
        LOSSLESS,
    ),
    "HTJ2K": (lambda: file([bytes(imagecodecs.htj2k_encode(stored(16)))], HTJ2KLossless, stored(16)), LOSSLESS),
    "JPEG in DICOM": (lambda: file([jpeg(stored(8))], JPEGBaseline8Bit, stored(8)), LOSSY),
    "JPEG in DICOM, colour": (
        lambda: file([jpeg(colour())], JPEGBaseline8Bit, colour(), PhotometricInterpretation="YBR_FULL_422"),
        LOSSY,
    ),
    "JPEG": (lambda: jpeg(stored(8)), LOSSY),
    "JPEG, colour": (lambda: jpeg(colour()), LOSSY),
    "JPEG, progressive": (lambda: jpeg(stored(8), progressive=True), LOSSY),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_reduced_frame_is_the_whole_one_by_area(kind: str) -> None:
    made, tolerance = KINDS[kind]
    data = made()
    assert is_reduced(data)
    # Something was lost: else it would not have been reduced.
    assert 0 < worst(data) < tolerance


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_jpeg_that_is_turned_is_reduced_where_its_blocks_are_whole(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(stored(8)[:256, :384], exif=exif)
    assert is_reduced(data)
    assert 0 < worst(data) < LOSSY


def test_the_second_of_two_frames_is_its_own() -> None:
    data = KINDS["J2K, frames"][0]()
    assert worst(data, frame=1) < LOSSLESS
    first, second = decode(data, REDUCED, kit.LIMITS).frames
    assert np.abs(first.pixels.astype(float) + second.pixels - 65535).max() < 65535 * LOSSLESS
    (alone,) = decode(data, REDUCED, kit.LIMITS, only=1).frames
    assert np.array_equal(alone.pixels, second.pixels)


def test_rows_and_columns_are_those_of_the_whole_frame() -> None:
    padded = REDUCED.model_copy(update={"resize": "pad"})
    decoded = decode(KINDS["J2K, 12 bits"][0](), padded, kit.LIMITS)
    geometry = decoded.frames[0].geometry
    assert (geometry.rows, geometry.columns, geometry.height, geometry.width) == (ROWS, COLUMNS, 29, 44)
    assert (decoded.header["rows"], decoded.header["columns"], decoded.header["bits"]) == (ROWS, COLUMNS, 12)


# --- The samples themselves, by T.800 annex F


def low_pass(values: Array) -> Array:
    """The reversible 5/3 low-pass of each column, T.800 F.4.8.1: equations F-11 and F-10, mirrored at the ends."""
    rows = len(values)

    def at(n: int) -> Array:
        return values[n if n < rows else 2 * (rows - 1) - n]

    details = [at(2 * n + 1) - ((at(2 * n) + at(2 * n + 2)) >> 1) for n in range(rows // 2)]
    # Before the first lies its own mirror image, and so behind the last.
    around = [details[0], *details, details[-1]]
    return np.stack([at(2 * n) + ((around[n] + around[n + 1] + 2) >> 2) for n in range((rows + 1) // 2)])


@pytest.mark.parametrize(("bits", "low"), [(5, 0), (8, 0), (12, 0), (16, 0), (8, -128), (12, -2048), (16, -32768)])
def test_samples_are_exactly_those_of_the_code_stream(bits: int, low: int) -> None:
    rng = np.random.default_rng(bits)
    # Away from the ends of the range, where a decoder may clip what the low-pass adds.
    values = (SMOOTH[:41, :66] * 2**bits * 0.9 + rng.normal(0, 2**bits / 100, (41, 66)) + low).astype(np.int64)
    found = reduced_jpeg2000.decode(j2k(values.astype(stored(bits, low).dtype), bits), 4)
    assert found is not None
    expected = values
    for _ in range(2):
        expected = low_pass(low_pass(expected).T).T
    samples, grid = found
    assert samples.dtype == stored(bits, low).dtype
    assert np.array_equal(samples, expected)
    assert grid == (41, 66, 4, 0.0)
    assert grid.size == samples.shape


# --- By how much


@pytest.mark.parametrize(
    ("rows", "columns", "options", "expected"),
    [
        (512, 512, {}, 4),
        (511, 512, {}, 2),
        (512, 255, {}, 1),
        (127, 4000, {}, 1),
        (2048, 2048, {}, 16),
        (20, 20, {}, 1),
        # Padded, the wide one fills a quarter of the input's rows.
        (128, 512, {"resize": "pad"}, 4),
        (128, 512, {}, 1),
        (2048, 2048, {"decode": "full"}, 1),
        (2048, 2048, {"window": "percentile"}, 1),
        (2048, 2048, {"interpolation": "bilinear"}, 1),
    ],
)
def test_at_least_twice_the_input_is_left(rows: int, columns: int, options: dict[str, Any], expected: int) -> None:
    policy = PixelPolicy(channels=1, height_px=64, width_px=64, **{"decode": "reduced", **options})
    assert factor(policy, rows, columns) == expected


def test_a_stream_of_fewer_resolutions_gives_the_smallest_it_has() -> None:
    found = reduced_jpeg2000.decode(j2k(GREY12, 12, resolutions=2), FACTOR)
    assert found is not None
    assert found[1].factor == 2
    data = file([j2k(GREY12, 12, resolutions=2)], JPEG2000Lossless, GREY12, 12)
    assert is_reduced(data)
    assert worst(data) < LOSSLESS
