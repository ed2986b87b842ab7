"""Masks in whatever mode an editor saves them."""

import numpy as np
import pytest
from PIL import Image

from ad_jobs.evaluation.masks import read_mask


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_any_non_zero_pixel_marks_whatever_the_mode(tmp_path, mode):
    mask = np.zeros((90, 120), bool)
    mask[10:20, 30:50] = True
    if mode == "I;16":
        picture = Image.fromarray(mask.astype(np.uint16) * 300)
    elif mode == "P":
        picture = Image.fromarray(mask.astype(np.uint8) + 5).convert("P")
        picture.putpalette([0, 0, 0] * 6 + [200, 0, 0] + [0, 0, 0] * 249)
    else:
        picture = Image.fromarray(mask.astype(np.uint8) * 255).convert(mode)
    picture.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(str(tmp_path / "mask.png"), 90, 120), mask)
