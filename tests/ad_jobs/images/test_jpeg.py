"""JPEG in, numbers out: of 8 and 12 bits, in colour and with odd headers."""

from __future__ import annotations

from io import BytesIO

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from rasterkit import COLUMNS, GREY8, HALF_STEP, LIMITS, RGB8, ROWS, policy, saved, shown

from ad_jobs.images.decode import decode


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


def test_broken_exif_does_not_cost_the_pixels() -> None:
    data = saved(Image.fromarray(GREY8), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert shown(data).shape == (ROWS, COLUMNS)
