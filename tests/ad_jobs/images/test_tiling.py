"""Where tiles lie, what is stitched of them, and how a stitched heatmap is kept."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from rasterkit import saved

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.decode import decode
from ad_jobs.images.geometry import Geometry
from ad_jobs.images.policy import Limits, PixelPolicy, Tiles
from ad_jobs.images.tiling import STORED_CELL_PX, Stitch, Tiling, geometry_to_store, to_store

TILE = {"channels": 1, "height_px": 16, "width_px": 24}


def policy(**tiles: object) -> PixelPolicy:
    return PixelPolicy.model_validate({**TILE, "tiles": {"overlap_px": 4, **tiles}})


@given(
    tile=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    more=st.tuples(st.integers(0, 200), st.integers(0, 200)),
    share=st.floats(0, 0.5),
)
def test_tiles_cover_an_image_of_any_size_and_overlap(
    tile: tuple[int, int], more: tuple[int, int], share: float
) -> None:
    overlap = int(share * min(tile))
    tiling = Tiling(*tile, overlap)
    height, width = tile[0] + more[0], tile[1] + more[1]
    corners = tiling.corners(height, width)
    assert len(corners) == len(set(corners)) == tiling.number(height, width)
    for axis, (side, length) in enumerate(zip(tile, (height, width), strict=True)):
        starts = sorted({corner[axis] for corner in corners})
        assert (starts[0], starts[-1]) == (0, length - side), "flush with the border"
        gaps = np.diff(starts)
        assert (gaps <= side - overlap).all()
        # No more tiles than that needs, and none of them closer to its neighbour than the others.
        assert len(starts) == 1 or gaps.max() - gaps.min() <= 1
        assert (len(starts) - 2) * (side - overlap) < length - side


def test_an_image_is_no_smaller_than_a_tile() -> None:
    with pytest.raises(ValueError, match="no smaller"):
        Tiling(16, 24, 4).corners(15, 24)


@pytest.mark.parametrize("step", [1, -1])
def test_tiles_that_agree_give_the_image_in_any_order(step: int) -> None:
    tiling = Tiling(5, 4, 2)
    whole = np.random.default_rng(0).random((13, 11), np.float32)
    stitch = Stitch(tiling, 13, 11)
    corners = tiling.corners(13, 11)
    for number, corner in list(enumerate(corners))[::step]:
        assert stitch.left > 0
        stitch.add(corner, float(number), tiling.cut(whole, corner))
    assert (stitch.left, stitch.score) == (0, len(corners) - 1)
    np.testing.assert_allclose(stitch.heatmap, whole, rtol=1e-6)


def test_where_two_tiles_disagree_one_fades_into_the_other() -> None:
    stitch = Stitch(Tiling(8, 8, 4), 8, 12)
    stitch.add((0, 0), 0.0, np.zeros((8, 8), np.float32))
    stitch.add((0, 4), 1.0, np.ones((8, 8), np.float32))
    expected = [0, 0, 0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1, 1, 1]
    np.testing.assert_allclose(stitch.heatmap, [expected] * 8, rtol=1e-6)


@pytest.mark.parametrize(("higher", "expected"), [(0.0, 0.875 + 0.125 * 0.25), (0.5, 1.5)])
def test_where_scores_are_maxima_the_images_is_the_stitched_maximum(higher: float, expected: float) -> None:
    """What one tile sees at its very edge counts as little as it does in the heatmap."""
    stitch = Stitch(Tiling(8, 8, 4), 8, 12)
    edge = np.zeros((8, 8), np.float32)
    edge[:, 4] = 1.0
    stitch.add((0, 0), 1.0 + higher, edge)
    stitch.add((0, 4), 0.25 + higher, np.full((8, 8), 0.25, np.float32))
    assert stitch.score == pytest.approx(expected)


def test_a_single_tile_is_as_it_was() -> None:
    found = np.random.default_rng(0).random((4, 6), np.float32)
    stitch = Stitch(Tiling(4, 6, 2), 4, 6)
    stitch.add((0, 0), 7.0, found)
    assert stitch.score == 7
    np.testing.assert_array_equal(stitch.heatmap, found)


def test_what_is_not_finite_stays_so() -> None:
    stitch = Stitch(Tiling(4, 4, 2), 4, 6)
    spoiled = np.zeros((4, 4), np.float32)
    spoiled[0, 3] = np.nan
    stitch.add((0, 0), np.nan, spoiled)
    stitch.add((0, 2), 1.0, np.ones((4, 4), np.float32))
    assert np.isnan(stitch.score)
    assert np.isnan(stitch.heatmap).sum() == 1


# --- What is kept


def test_a_kept_heatmap_has_the_greatest_value_of_each_cell_and_lies_over_the_source() -> None:
    geometry = Geometry.of(policy(), 41, 30)
    heatmap = np.zeros((41, 30), np.float32)
    heatmap[20, 11] = 1.0
    kept, placed = to_store(heatmap, geometry, policy()), geometry_to_store(geometry, policy())
    assert kept.shape == placed.size_px == (11, 8)
    assert (placed.rows, placed.columns) == (41, 30)
    assert kept.max() == 1.0
    found = placed.heatmap_to_source(kept)
    assert found.shape == (41, 30)
    y, x = np.unravel_index(found.argmax(), found.shape)
    assert max(abs(y - 20), abs(x - 11)) < STORED_CELL_PX


def test_padding_is_not_kept() -> None:
    small = Geometry.of(policy(), 8, 40)
    assert (small.size_px, small.top, small.height) == ((16, 40), 4, 8)
    heatmap = np.ones(small.size_px, np.float32)
    heatmap[small.top : small.top + small.height] = 0.25
    assert (to_store(heatmap, small, policy()) == 0.25).all()


def test_a_heatmap_of_the_inputs_size_is_kept_as_it_is() -> None:
    whole = PixelPolicy.model_validate(TILE)
    geometry, heatmap = Geometry.of(whole, 100, 100), np.ones((16, 24), np.float32)
    assert geometry_to_store(geometry, whole) is geometry
    assert to_store(heatmap, geometry, whole) is heatmap


# --- Policy and pixels


def test_a_policy_without_tiles_says_nothing_of_them() -> None:
    assert "tiles" not in PixelPolicy.model_validate(TILE).model_dump(mode="json")
    said = policy(size_px=(32, 48)).model_dump(mode="json")
    assert said["tiles"] == {"overlap_px": 4, "size_px": [32, 48]}
    assert PixelPolicy.model_validate(said) == policy(size_px=(32, 48))


@pytest.mark.parametrize(
    ("tiles", "words"),
    [
        ({"overlap_px": 9}, "at most half"),
        ({"overlap_px": -1}, "0 or more"),
        ({"size_px": (15, 48)}, "no larger than"),
        ({"size_px": (0, 48)}, "from 1 to"),
    ],
)
def test_tiles_that_cannot_be_are_refused(tiles: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        policy(**tiles)


@pytest.mark.parametrize(
    ("tiles", "resize", "source", "input_px", "box"),
    [
        ({}, "stretch", (100, 37), (100, 37), (100, 37)),
        ({}, "pad", (10, 37), (16, 37), (10, 37)),
        ({}, "stretch", (5, 7), (16, 24), (5, 7)),
        ({"size_px": (64, 64)}, "stretch", (100, 50), (64, 64), (64, 64)),
        ({"size_px": (64, 64)}, "pad", (100, 50), (64, 64), (64, 32)),
    ],
)
def test_the_geometry_is_that_of_what_is_cut(
    tiles: dict[str, object], resize: str, source: tuple[int, int], input_px: tuple[int, int], box: tuple[int, int]
) -> None:
    found = Geometry.of(policy(**tiles).model_copy(update={"resize": resize}), *source)
    assert (found.size_px, (found.height, found.width)) == (input_px, box)
    y, x = found.input_to_source(*found.source_to_input(3.0, 2.0))
    assert (y, x) == pytest.approx((3.0, 2.0))


def png_of(values: NDArray[np.uint8]) -> bytes:
    return saved(Image.fromarray(values), "PNG")


def tiff_of(*pages: NDArray[np.uint8]) -> bytes:
    stream = BytesIO()
    with tifffile.TiffWriter(stream) as file:
        for page in pages:
            file.write(page, photometric="minisblack")
    return stream.getvalue()


def test_a_frame_keeps_its_own_pixels() -> None:
    values = np.random.default_rng(0).integers(0, 256, (50, 31)).astype(np.uint8)
    (frame,) = decode(png_of(values), policy(), Limits()).frames
    np.testing.assert_array_equal(frame.pixels, values[None].astype(np.uint16) * 257)


def test_pages_that_are_larger_than_the_first_count_as_they_are() -> None:
    pages = [np.zeros((16, 24), np.uint8), np.zeros((64, 64), np.uint8)]
    limits = Limits(max_input_pixels=64 * 64 + 16 * 24)
    assert [frame.pixels.shape[1:] for frame in decode(tiff_of(*pages), policy(), limits).frames] == [
        (16, 24),
        (64, 64),
    ]
    little = Limits(max_input_pixels=64 * 64)
    with pytest.raises(ImageError, match=r"2 frames, .* over max_input_pixels") as many:
        decode(tiff_of(*pages), policy(), little)
    assert many.value.code == ErrorCode.TOO_MANY_FRAMES
    with pytest.raises(ImageError, match=r"^too_many_pixels: 4096 pixels .* over max_input_pixels 4095$"):
        decode(png_of(pages[1]), policy(), Limits(max_input_pixels=64 * 64 - 1))


def test_tiles_are_a_part_of_what_a_policy_is_told_apart_by() -> None:
    assert len({PixelPolicy.model_validate(TILE), policy(), policy(overlap_px=5)}) == 3
    assert Tiles(overlap_px=4).size_px is None
