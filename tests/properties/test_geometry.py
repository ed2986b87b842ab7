"""Geometry for any sizes: coordinates invert, areas keep their sums, masks and heatmaps stay in place."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ad_jobs.images.geometry import Geometry, Grid, resize
from ad_jobs.images.policy import PixelPolicy

SIZES = st.integers(1, 70)
RESIZES = st.sampled_from(["stretch", "pad"])
# float32 means of values up to 1: seven digits, less what some hundred additions lose.
MEAN_TOLERANCE = 1e-5


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    policy = PixelPolicy(channels=1, height_px=draw(SIZES), width_px=draw(SIZES), resize=draw(RESIZES))
    return Geometry.of(policy, draw(SIZES), draw(SIZES))


def overlap_weights(source: int, target: int) -> np.ndarray:
    """The share of each target pixel that each source pixel covers, by its definition: [target, source]."""
    scale = source / target
    weights = np.zeros((target, source))
    for t in range(target):
        for s in range(source):
            weights[t, s] = max(0.0, min((t + 1) * scale, s + 1) - max(t * scale, s)) / scale
    return weights


@given(geometries(), st.floats(-100, 100), st.floats(-100, 100))
def test_coordinates_invert_exactly(geometry: Geometry, y: float, x: float) -> None:
    assert geometry.input_to_source(*geometry.source_to_input(y, x)) == pytest.approx((y, x), abs=1e-9)
    assert geometry.source_to_input(*geometry.input_to_source(y, x)) == pytest.approx((y, x), abs=1e-9)


@given(geometries())
def test_corners_of_the_source_are_the_corners_of_the_box(geometry: Geometry) -> None:
    assert geometry.source_to_input(-0.5, -0.5) == pytest.approx((geometry.top - 0.5, geometry.left - 0.5))
    end = geometry.source_to_input(geometry.rows - 0.5, geometry.columns - 0.5)
    assert end == pytest.approx((geometry.top + geometry.height - 0.5, geometry.left + geometry.width - 0.5))


@given(geometries())
def test_the_box_lies_within_the_input_and_survives_json(geometry: Geometry) -> None:
    assert geometry.top >= 0
    assert geometry.left >= 0
    assert 1 <= geometry.height <= geometry.height_px - geometry.top
    assert 1 <= geometry.width <= geometry.width_px - geometry.left
    assert Geometry(**json.loads(json.dumps(geometry._asdict()))) == geometry


@given(st.integers(1, 500), st.integers(1, 500), st.integers(8, 200), st.integers(8, 200))
def test_pad_keeps_the_aspect_to_the_pixel(rows: int, columns: int, height: int, width: int) -> None:
    policy = PixelPolicy(channels=1, height_px=height, width_px=width, resize="pad")
    geometry = Geometry.of(policy, rows, columns)
    assert geometry.height == height or geometry.width == width
    scale = min(height / rows, width / columns)
    assert abs(geometry.height - max(1, rows * scale)) <= 0.5
    assert abs(geometry.width - max(1, columns * scale)) <= 0.5


@given(st.integers(2, 40), st.integers(2, 40), st.data())
def test_area_is_the_mean_over_what_a_pixel_covers(rows: int, columns: int, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, rows)), data.draw(st.integers(1, columns))
    pixels = np.random.default_rng(rows * 41 + columns).random((rows, columns), dtype=np.float32)
    expected = overlap_weights(rows, height) @ pixels @ overlap_weights(columns, width).T
    assert np.allclose(resize(pixels, height, width), expected, atol=MEAN_TOLERANCE)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 6), st.integers(1, 6), st.booleans())
def test_blocks_shrink_to_what_they_were_made_of(h: int, w: int, down: int, across: int, colour: bool) -> None:
    pixels = np.random.default_rng(h * 9 + w).random((h, w, 3) if colour else (h, w), dtype=np.float32)
    blocks = np.repeat(np.repeat(pixels, down, axis=0), across, axis=1)
    assert np.allclose(resize(blocks, h, w), pixels, atol=MEAN_TOLERANCE)


@given(geometries(), st.sampled_from(["area", "bilinear"]), st.floats(0, 1, width=32))
def test_a_constant_stays_constant_and_padding_black(geometry: Geometry, how: str, value: float) -> None:
    placed = geometry.to_input(np.full((geometry.rows, geometry.columns), value, np.float32), how)
    box = np.zeros(placed.shape, bool)
    box[geometry.top :, geometry.left :][: geometry.height, : geometry.width] = True
    assert placed.shape == (geometry.height_px, geometry.width_px)
    assert np.allclose(placed[box], value, atol=MEAN_TOLERANCE)
    assert (placed[~box] == 0).all()


@given(geometries(), st.sampled_from(["area", "bilinear"]))
def test_no_value_leaves_the_range_and_channels_do_not_mix(geometry: Geometry, how: str) -> None:
    rng = np.random.default_rng(geometry.rows)
    pixels = rng.random((geometry.rows, geometry.columns, 3), dtype=np.float32)
    placed = geometry.to_input(pixels, how)
    assert placed.min() >= -MEAN_TOLERANCE
    assert placed.max() <= 1 + MEAN_TOLERANCE
    for channel in range(3):
        assert np.array_equal(placed[..., channel], geometry.to_input(pixels[..., channel], how))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_mirrored_sources_give_mirrored_inputs(rows: int, columns: int, height: int, width: int) -> None:
    pixels = np.random.default_rng(rows).random((rows, columns), dtype=np.float32)
    mirrored = resize(pixels[::-1, ::-1], height, width)
    assert np.allclose(mirrored, resize(pixels, height, width)[::-1, ::-1], atol=MEAN_TOLERANCE)


@given(geometries())
def test_a_mask_keeps_its_share_of_the_picture(geometry: Geometry) -> None:
    shrinks = geometry.height <= geometry.rows and geometry.width <= geometry.columns
    mask = np.random.default_rng(geometry.columns).random((geometry.rows, geometry.columns)) > 0.7
    placed = geometry.mask_to_input(mask.astype(np.uint8) * 255)
    assert placed.min() >= 0
    assert placed.max() <= 1
    # Where it grows, edges are interpolated and the share is only nearly kept.
    if shrinks:
        assert placed.sum() / (geometry.height * geometry.width) == pytest.approx(mask.mean(), abs=MEAN_TOLERANCE)


@given(st.integers(8, 60), st.integers(8, 60), st.integers(8, 60), st.integers(8, 60), RESIZES, st.data())
def test_a_spot_comes_back_to_where_it_was(
    rows: int, columns: int, height: int, width: int, how: str, data: st.DataObject
) -> None:
    geometry = Geometry.of(PixelPolicy(channels=1, height_px=height, width_px=width, resize=how), rows, columns)
    y, x = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    mask = np.zeros((rows, columns), np.uint8)
    mask[y, x] = 1
    heatmap = geometry.mask_to_input(mask)
    peak = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    there = geometry.source_to_input(y, x)
    assert abs(peak[0] - there[0]) <= 0.5 + 0.5 * max(1, geometry.height / rows)
    assert abs(peak[1] - there[1]) <= 0.5 + 0.5 * max(1, geometry.width / columns)
    back = geometry.heatmap_to_source(heatmap)
    assert back.shape == (rows, columns)
    found = np.unravel_index(int(back.argmax()), back.shape)
    assert abs(found[0] - y) <= max(1, rows / geometry.height)
    assert abs(found[1] - x) <= max(1, columns / geometry.width)


@st.composite
def grids(draw: st.DrawFn) -> tuple[Geometry, Grid]:
    """A frame reduced by its middle pixels or its first ones, to twice an input's side and more."""
    factor = draw(st.sampled_from([2, 4, 8]))
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    rows = draw(st.integers(2 * factor * height, 2 * factor * height + 30))
    columns = draw(st.integers(2 * factor * width, 2 * factor * width + 30))
    policy = PixelPolicy(channels=1, height_px=height, width_px=width)
    offset = draw(st.sampled_from([0.0, (factor - 1) / 2]))
    return Geometry.of(policy, rows, columns), Grid(rows, columns, factor, offset)


@given(grids(), st.booleans())
def test_a_reduced_ramp_comes_to_the_input_as_the_whole_one_does(found: tuple[Geometry, Grid], colour: bool) -> None:
    geometry, grid = found
    rows, columns = np.arange(grid.rows), np.arange(grid.columns)
    whole = (rows[:, None] + 3.0 * columns).astype(np.float32)
    # A ramp at the places where the reduced frame has pixels, also beyond the last row and column.
    y, x = (np.arange(size) * grid.factor + grid.offset for size in grid.size)
    reduced = (y[:, None] + 3.0 * x).astype(np.float32)
    if colour:
        whole, reduced = np.stack([whole, -whole], axis=-1), np.stack([reduced, -reduced], axis=-1)
    placed, expected = geometry.reduced_to_input(reduced, grid), geometry.to_input(whole)
    assert placed.shape == expected.shape
    # A mean over steps of the factor is that of the ramp but for its ends, cut within a step.
    assert np.abs(placed - expected).max() <= 4 * grid.factor / 4
    assert np.allclose(placed[1:-1, 1:-1], expected[1:-1, 1:-1], atol=4 * grid.factor / 8)


@given(grids())
def test_a_reduced_constant_stays_constant(found: tuple[Geometry, Grid]) -> None:
    geometry, grid = found
    placed = geometry.reduced_to_input(np.full(grid.size, 0.75, np.float32), grid)
    assert np.allclose(placed, 0.75, atol=MEAN_TOLERANCE)


@given(grids())
def test_blocks_of_means_are_meant_as_the_whole_frame_is(found: tuple[Geometry, Grid]) -> None:
    geometry, grid = found
    # Where a reduced pixel is the mean of its block, parts that end with blocks have exactly the whole frame's means.
    grid = grid._replace(offset=(grid.factor - 1) / 2)
    unit = 2 * grid.factor
    rows, columns = unit * geometry.height, unit * geometry.width
    whole = np.random.default_rng(rows).random((rows, columns), dtype=np.float32)
    blocks = whole.reshape(rows // grid.factor, grid.factor, columns // grid.factor, grid.factor).mean((1, 3))
    even = Geometry.of(PixelPolicy(channels=1, height_px=geometry.height, width_px=geometry.width), rows, columns)
    placed = even.reduced_to_input(blocks, grid._replace(rows=rows, columns=columns))
    assert np.allclose(placed, even.to_input(whole), atol=MEAN_TOLERANCE)


def test_sizes_that_do_not_fit_are_refused() -> None:
    geometry = Geometry.of(PixelPolicy(channels=1, height_px=8, width_px=16), 20, 30)
    with pytest.raises(ValueError, match="20 rows and 30 columns"):
        geometry.to_input(np.zeros((30, 20), np.float32))
    with pytest.raises(ValueError, match="8 rows and 16 columns"):
        geometry.heatmap_to_source(np.zeros((16, 8), np.float32))
    grid = Grid(20, 30, 2, 0.0)
    with pytest.raises(ValueError, match="10 rows and 15 columns"):
        geometry.reduced_to_input(np.zeros((20, 30), np.float32), grid)
    with pytest.raises(ValueError, match=r"20 x 30.*Got: 19 x 30"):
        geometry.reduced_to_input(np.zeros((10, 15), np.float32), grid._replace(rows=19))
