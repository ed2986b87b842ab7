"""A frame for display."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from rasterkit import COLUMNS, GREY8, LIMITS, RGB8, ROWS, policy, saved

from ad_jobs.errors import ImageError
from ad_jobs.images.decode import preview


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
