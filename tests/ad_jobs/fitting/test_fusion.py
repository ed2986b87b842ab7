"""Who joins a fusion, by synthetic defects alone, and which members can score together at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectorkit import build

from ad_jobs.errors import JobError, UsageError
from ad_jobs.fitting.fusion import Fitted, _Moments, chosen, common_policy, fused
from ad_jobs.fitting.synthetic import Judged
from ad_jobs.images.model_input import to_input
from ad_jobs.images.policy import PixelPolicy
from ad_jobs.images.tiling import Tiling


def judged(*shifts: float | None, shared: float = 0.0, images: int = 128) -> Judged:
    """Of each member: by how many spreads a defect moves its scores, None for one that is always the same.

    `shared`: how much of the noise is the same for all.
    """
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        own, common = rng.standard_normal((*shape, len(shifts))), rng.standard_normal((*shape, 1))
        return shared * common + (1 - shared**2) ** 0.5 * own

    moves = np.array([0.0 if shift is None else shift for shift in shifts])
    # Scales that differ by orders of magnitude count for nothing.
    scale = np.array([0.0 if shift is None else 10.0**n for n, shift in enumerate(shifts)])
    return Judged(("blob", "line"), scale * noise(images), scale * (noise(images, 2) + moves))


def test_members_that_add_to_what_is_found_share_the_weight() -> None:
    assert chosen(judged(1.0, 1.0, 1.0)) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_a_member_that_finds_nothing_is_left_out() -> None:
    assert chosen(judged(1.5, 0.0, 1.5)) == (0.5, 0.0, 0.5)
    assert chosen(judged(1.5, -0.5)) == (1.0, 0.0)


def test_a_member_that_scores_all_images_alike_is_left_out() -> None:
    assert chosen(judged(1.0, None)) == (1.0, 0.0)
    with pytest.raises(JobError, match="scores all held-out normal images alike"):
        chosen(judged(None, None))


def policy(**values: object) -> PixelPolicy:
    return PixelPolicy.model_validate({"channels": 1, "height_px": 64, "width_px": 64, **values})


def member(place: str, policy: PixelPolicy) -> Fitted:
    torch.manual_seed(0)
    return Fitted(place, place, "linear", policy, build("linear", (policy.height_px, policy.width_px)))


def test_the_common_policy_is_the_largest_and_in_colour_if_one_is() -> None:
    found = common_policy([member("/a", policy()), member("/b", policy(channels=3, height_px=32, width_px=128))])
    assert found == policy(channels=3, width_px=128)


@pytest.mark.parametrize(
    "other", [{"window": "percentile"}, {"resize": "pad"}, {"interpolation": "bilinear"}, {"decode": "reduced"}]
)
def test_members_whose_images_are_prepared_otherwise_are_refused(other: dict[str, str]) -> None:
    ((name, value),) = other.items()
    with pytest.raises(UsageError, match=rf"{name} .* in /a, {value} in /b"):
        common_policy([member("/a", policy()), member("/b", policy(**other))])


def test_a_spread_in_parts_is_that_of_all() -> None:
    values = 1e4 + torch.rand(7, 5, generator=torch.Generator().manual_seed(0))
    found = _Moments()
    for part in values.split(3):
        found.add(part)
    assert found.spread == pytest.approx(float(values.double().std(unbiased=False)), rel=1e-9)


def test_tiles_of_one_size_are_fused_and_of_two_are_not() -> None:
    tiles = {"overlap_px": 8, "size_px": None}
    small, large = policy(height_px=32, width_px=32, tiles=tiles), policy(tiles=tiles)
    with pytest.raises(UsageError, match="where they are not cut into tiles"):
        common_policy([member("/a", small), member("/b", large)])
    rng = np.random.default_rng(0)
    # Larger than a tile, and of sizes of their own.
    frames = [rng.integers(0, 65536, (1, 40 + 4 * number, 56), np.uint16) for number in range(6)]
    seen: list[PixelPolicy] = []

    def read(under: PixelPolicy) -> list[np.ndarray]:
        seen.append(under)
        return frames

    members = [member("/a", small), member("/b", small)]
    fusion = fused(members, read)
    assert fusion.policy == small == seen[0]
    assert fusion.told["normals"] == len(frames)
    one = fusion.detector
    cut = [frame[:, top : top + 32, left : left + 32] for frame in frames for top, left in corners(*frame.shape[1:])]
    scores = one.scores(torch.from_numpy(np.stack([to_input(tile, 1) for tile in cut])))
    torch.testing.assert_close(one.score_spread, torch.stack([each.image.std(correction=0) for each in scores]))


def corners(height: int, width: int) -> list[tuple[int, int]]:
    return Tiling(32, 32, 8).corners(height, width)
