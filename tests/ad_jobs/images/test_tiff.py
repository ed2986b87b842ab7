"""TIFF in, numbers out: pages, kinds of samples, floats."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import tifffile
from rasterkit import COLUMNS, GREY8, GREY16, HALF_STEP, LIMITS, ROWS, policy, refused, shown, tiff

from ad_jobs.errors import ErrorCode
from ad_jobs.images.decode import decode, read_header
from ad_jobs.images.policy import Limits

RNG = np.random.default_rng(6)


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
