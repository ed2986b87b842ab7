"""A frame for display."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from rasterkit import COLUMNS, GREY8, LIMITS, RGB8, ROWS, policy, saved

from ad_jobs.errors import ImageError
from ad_jobs.images.decode import preview, view


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


def test_a_view_has_every_grey_level_and_what_the_window_cuts_off() -> None:
    deep = np.arange(2000, 2000 + 64 * 96, dtype=np.uint16).reshape(64, 96)
    file = saved(Image.fromarray(deep), "PNG")
    windowed = view(file, 0, policy(window=(3000.0, 4000.0)), LIMITS, 1000, whole_range=False)
    assert windowed.pixels.dtype == np.uint16
    assert (windowed.rows, windowed.columns) == (64, 96)
    assert (windowed.pixels[deep <= 3000] == 0).all()
    assert (windowed.pixels[deep >= 4000] == 65535).all()
    whole = view(file, 0, policy(window=(3000.0, 4000.0)), LIMITS, 1000, whole_range=True)
    assert len(np.unique(whole.pixels)) == deep.size
    assert (whole.pixels.min(), whole.pixels.max()) == (0, 65535)
    colour = view(saved(Image.fromarray(RGB8), "PNG"), 0, policy(), LIMITS, 1000, whole_range=True)
    assert np.array_equal(colour.pixels, RGB8)
    small = view(file, 0, policy(), LIMITS, 48, whole_range=True)
    assert (small.pixels.shape, small.rows, small.columns) == ((32, 48), 64, 96)
