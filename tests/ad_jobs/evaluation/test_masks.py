"""Masks in whatever mode an editor saves them, and those that cannot be used."""

import numpy as np
import pytest
from PIL import Image

from ad_jobs.errors import UsageError
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


def test_a_mask_of_another_size_than_its_image(tmp_path):
    Image.fromarray(np.ones((120, 90), np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(UsageError, match="120 x 90, the image 90 x 120"):
        read_mask(str(tmp_path / "mask.png"), 90, 120)


def test_a_mask_that_marks_nothing(tmp_path):
    Image.fromarray(np.zeros((90, 120), np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(UsageError, match="mark something"):
        read_mask(str(tmp_path / "mask.png"), 90, 120)


@pytest.mark.parametrize("data", [b"no image", None], ids=["no image", "no file"])
def test_a_mask_that_cannot_be_read(tmp_path, data):
    if data is not None:
        (tmp_path / "mask.png").write_bytes(data)
    with pytest.raises(UsageError, match="mask must be an image"):
        read_mask(str(tmp_path / "mask.png"), 90, 120)
