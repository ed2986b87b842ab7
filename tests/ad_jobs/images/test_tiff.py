"""TIFF in, numbers out: pages, kinds of samples, floats."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from rasterkit import COLUMNS, GREY8, GREY16, HALF_STEP, LIMITS, ROWS, policy, refused, shown, tiff

from ad_jobs.errors import ErrorCode
from ad_jobs.images.decode import decode, read_header
from ad_jobs.images.policy import Limits

RNG = np.random.default_rng(6)
STACK = RNG.integers(0, 65536, (5, ROWS, COLUMNS), dtype=np.uint16)


def test_pages_are_frames_with_their_own_geometry() -> None:
    stream = BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for page in (GREY8, GREY8[:6], GREY8[::-1]):
            writer.write(page, photometric="minisblack", metadata=None)
        # A thumbnail.
        writer.write(GREY8[:3, :5], photometric="minisblack", subfiletype=1, metadata=None)
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


def frames(data: bytes, window: Any = "dicom") -> list[npt.NDArray[Any]]:
    """The grey values in [0, 1] of every frame."""
    return [frame.pixels[0] / 65535 for frame in decode(data, policy(window=window), LIMITS).frames]


STACKS = {
    "ImageJ": {"imagej": True, "metadata": {"axes": "ZYX"}, "truncate": True},
    "ImageJ, big endian": {"imagej": True, "metadata": {"axes": "TYX"}, "truncate": True, "byteorder": ">"},
    "ImageJ, a directory a frame": {"imagej": True},
    "ImageJ that counts images alone": {
        "description": "ImageJ=1.53t\nimages=5\nmode=grayscale\n",
        "metadata": None,
        "truncate": True,
    },
    "tifffile": {"truncate": True},
}


@pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)
def test_frames_behind_one_page_are_frames(options: dict[str, Any]) -> None:
    data = tiff(STACK, **options)
    found = frames(data)
    assert len(found) == 5
    for shown_, stored in zip(found, STACK, strict=True):
        assert np.array_equal(shown_ * 65535, stored)
    assert read_header(data)["frames"] == 5
    if options.get("truncate"):
        assert read_header(data[:1000], len(data))["frames"] == 5
    assert refused(data, Limits(max_frames=4)).code == ErrorCode.TOO_MANY_FRAMES


def test_a_stack_of_colour_is_one_of_frames_not_of_channels() -> None:
    colour = RNG.integers(0, 256, (3, ROWS, COLUMNS, 3), dtype=np.uint8)
    data = tiff(colour, imagej=True, truncate=True, photometric="rgb", metadata={"axes": "ZYXS"})
    decoded = decode(data, policy(), LIMITS)
    assert len(decoded.frames) == 3
    assert np.array_equal(decoded.frames[2].pixels, colour[2].transpose(2, 0, 1).astype(np.uint16) * 257)


def test_a_stack_that_is_cut_short_is_truncated() -> None:
    data = tiff(STACK, imagej=True, truncate=True)
    assert refused(data[:-100]).code == ErrorCode.TRUNCATED


def test_pages_of_scanimage_are_read_as_they_are_linked() -> None:
    stream = BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for page in STACK:
            writer.write(page, photometric="minisblack", metadata=None, software="SI.VERSION = 5", contiguous=False)
    found = frames(stream.getvalue())
    assert [np.array_equal(shown_ * 65535, stored) for shown_, stored in zip(found, STACK, strict=True)] == [True] * 5


def test_of_a_slide_the_baseline_is_the_picture() -> None:
    baseline = RNG.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    small = baseline[::4, ::4]
    stream = BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        common: dict[str, Any] = {"photometric": "rgb", "metadata": None}
        writer.write(baseline, tile=(16, 16), description="Aperio Image Library v11\n96x64 [0,0 96x64]", **common)
        writer.write(small, description="Aperio Image Library v11\n96x64 -> 24x16", rowsperstrip=16, **common)
        writer.write(
            baseline[::2, ::2], tile=(16, 16), description="Aperio Image Library v11\n96x64 -> 48x32", **common
        )
        writer.write(
            small, description="Aperio Image Library v11\nlabel 24x16", rowsperstrip=16, subfiletype=1, **common
        )
        writer.write(
            small, description="Aperio Image Library v11\nmacro 24x16", rowsperstrip=16, subfiletype=9, **common
        )
    decoded = decode(stream.getvalue(), policy(rows=64, columns=96), LIMITS)
    assert len(decoded.frames) == 1
    assert np.array_equal(decoded.frames[0].pixels, baseline.transpose(2, 0, 1).astype(np.uint16) * 257)


def gdal(pixels: npt.NDArray[Any], nodata: str, **options: Any) -> bytes:
    """A TIFF with GDAL's nodata value."""
    return tiff(pixels, extratags=[(42113, "s", 0, nodata, True)], metadata=None, **options)


@pytest.mark.parametrize(("value", "text"), [(-9999.0, "-9999"), (np.nan, "nan"), (-3.4e38, "-3.4e+38")])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_nodata_is_black_and_moves_no_range(value: float, text: str, compression: str | None) -> None:
    heights = RNG.random((ROWS, COLUMNS), dtype=np.float32) * 900 + 100
    holes = heights.copy()
    holes[:4] = value
    kept = heights[4:].astype(np.float64)
    data = gdal(holes, text, compression=compression)
    for window in ("dicom", "percentile", (200.0, 700.0)):
        low, high = {"dicom": (kept.min(), kept.max()), "percentile": np.percentile(kept, (0.5, 99.5))}.get(
            str(window), (200.0, 700.0)
        )
        (found,) = frames(data, window)
        assert (found[:4] == 0).all()
        assert np.allclose(found[4:], np.clip((kept - low) / (high - low), 0, 1), atol=HALF_STEP + 1e-6)


def test_nodata_of_integers_and_of_colour() -> None:
    (found,) = frames(gdal(GREY8, str(int(GREY8[2, 3]))))
    assert np.allclose(found, np.where(GREY8[2, 3] == GREY8, 0, GREY8 / 255), atol=HALF_STEP)
    colour = RNG.integers(0, 255, (ROWS, COLUMNS, 3), dtype=np.uint8)
    colour[:3] = 255
    colour[5, 5] = (255, 255, 7)
    data = gdal(colour, "255", photometric="rgb")
    expected = colour.astype(float) / 255
    expected[:3] = 0
    assert np.allclose(shown(data), expected, atol=HALF_STEP)


def test_a_nodata_value_that_no_sample_can_have_is_ignored() -> None:
    for text in ("-9999", "none", "inf"):
        decoded = decode(gdal(GREY8, text), policy(), LIMITS)
        assert decoded.remarks == ("nodata_ignored",)
        assert np.allclose(decoded.frames[0].pixels[0] / 65535, GREY8 / 255, atol=HALF_STEP)


def test_a_colour_map_of_8_bits_is_as_bright_as_one_of_16() -> None:
    colours = np.random.default_rng(8).integers(0, 256, (3, 256)).astype(np.uint16)
    expected = np.moveaxis(colours[:, GREY8], 0, -1) / 255
    for scale in (1, 257):
        data = tiff(GREY8, photometric="palette", colormap=colours * scale)
        assert np.allclose(shown(data), expected, atol=HALF_STEP)
