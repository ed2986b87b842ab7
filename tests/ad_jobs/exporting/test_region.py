"""The hot region's outline: exact in the source's pixels, and none where one outline cannot say it."""

from __future__ import annotations

import numpy as np
import pytest

from ad_jobs.exporting.region import outline
from ad_jobs.images.geometry import Geometry
from ad_jobs.results.read import Heatmap

# An input of 20 x 30, padded on the left and the right by 5; the source has twice as many rows and three times as many
# columns as the box.
GEOMETRY = Geometry(rows=40, columns=60, height_px=20, width_px=30, top=0, left=5, height=20, width=20)


def heatmap(*boxes: tuple[int, int, int, int], heat: float = 0.9) -> Heatmap:
    """Cold, but for boxes of rows and columns in the box of the source."""
    values = np.full((20, 30), 0.1, np.float32)
    for top, bottom, left, right in boxes:
        values[top:bottom, 5 + left : 5 + right] = heat
    # Padding is no place of the source.
    values[:, :5] = 1.0
    return Heatmap(values, GEOMETRY)


def area(corners: np.ndarray) -> float:
    x, y = corners.T
    return float(abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2)


def test_a_box_has_four_corners_in_the_pixels_of_the_source() -> None:
    found = outline(heatmap((4, 8, 6, 7)))
    assert found is not None
    assert found.tolist() == [[18, 8], [21, 8], [21, 16], [18, 16], [18, 8]]


def test_a_region_that_touches_every_edge_is_the_whole_source() -> None:
    found = outline(heatmap((0, 20, 0, 20)))
    assert found is not None
    assert (found.min(axis=0).tolist(), found.max(axis=0).tolist()) == ([0, 0], [60, 40])


@pytest.mark.parametrize("seed", range(5))
def test_an_outline_of_any_shape_holds_as_many_pixels_as_are_hot(seed: int) -> None:
    """A trunk with branches in every second row, which so enclose nothing."""
    rng = np.random.default_rng(seed)
    boxes = [(3, 16, 9, 11)]
    for row in range(4, 15, 2):
        left, right = rng.integers(0, 10), rng.integers(11, 21)
        boxes.append((row, row + 1, int(left), int(right)))
    shown = heatmap(*boxes)
    found = outline(shown)
    assert found is not None
    assert (found[0] == found[-1]).all()
    assert area(found) == pytest.approx(6 * (shown.values[:, 5:25] > 0.5).sum())


@pytest.mark.parametrize(
    "boxes",
    [
        pytest.param([(2, 4, 2, 4), (10, 12, 10, 12)], id="two places"),
        pytest.param([(2, 4, 2, 4), (4, 6, 4, 6)], id="that touch at a corner"),
        pytest.param([(2, 3, 2, 9), (8, 9, 2, 9), (2, 9, 2, 3), (2, 9, 8, 9)], id="a ring"),
        pytest.param([], id="nothing"),
    ],
)
def test_what_no_single_outline_says_has_none(boxes: list[tuple[int, int, int, int]]) -> None:
    assert outline(heatmap(*boxes)) is None


def test_what_is_no_hotter_than_normal_images_has_none() -> None:
    assert outline(heatmap((4, 8, 6, 7), heat=0.33)) is None
    assert outline(heatmap((4, 8, 6, 7), heat=0.34)) is not None
