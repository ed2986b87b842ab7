"""The judge by synthetic defects: the same for every detector, whatever its size, and its arrays' arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from textures import textures
from torch import Tensor

from ad_jobs.errors import JobError
from ad_jobs.fitting.defects import KINDS
from ad_jobs.fitting.synthetic import FRAMES, Judged, judge
from models.detector import Detector, InputSpec, Scores


class Toy(Detector):
    """Scores an image by `of`, and keeps what it saw."""

    def __init__(self, of: str = "mean", side: int = 32, channels: int = 1) -> None:
        super().__init__()
        self.spec = InputSpec(channels=channels, height_px=side, width_px=side)
        self.of = of
        self.seen: list[Tensor] = []

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        self.seen.append(images.clone())
        flat = images.flatten(1)
        score = {"mean": flat.mean(1), "least": -flat.amin(1), "none": torch.zeros(len(images))}.get(self.of)
        score = torch.full((len(images),), float("nan")) if score is None else score
        return Scores(score, torch.zeros(len(images), *self.spec.size_px))

    learner = None


def frames(count: int, side: int = 32) -> list[NDArray[np.uint16]]:
    return [(image.numpy() * 65535).astype(np.uint16) for image in textures(count, side, side, channels=1)]


def test_every_detector_is_judged_by_the_same_defects() -> None:
    one, other, of_colour = Toy(), Toy("least"), Toy(channels=3)
    judged = judge([one, other, of_colour], frames(3), seed=5)
    assert torch.equal(torch.cat(one.seen), torch.cat(other.seen))
    # Grey is repeated.
    assert torch.equal(torch.cat(of_colour.seen)[:, :1], torch.cat(one.seen))
    rounds = FRAMES // 3
    assert judged.kinds == tuple(KINDS)
    assert judged.normal.shape == (3, 3)
    assert judged.defective.shape == (3 * rounds, len(KINDS), 3)
    # By seed and place alone: alone, again, and with more frames behind them.
    alone = judge([Toy()], frames(3), seed=5)
    assert np.array_equal(alone.defective[..., 0], judged.defective[..., 0])
    more = judge([Toy()], frames(FRAMES), seed=5)
    assert np.array_equal(more.defective[:3, :, 0], judged.defective[::rounds, :, 0])
    assert not np.array_equal(judge([Toy()], frames(3), seed=6).defective, alone.defective)


def test_no_more_frames_are_judged_by_than_are_needed() -> None:
    given = iter(frames(1) * (FRAMES + 5))
    assert judge([Toy()], given, seed=0).normal.shape == (FRAMES, 1)
    assert len(list(given)) == 5


def test_a_smaller_detector_gets_the_frames_resampled_by_area() -> None:
    whole, half = Toy(side=32), Toy(side=16)
    judge([whole, half], frames(2), seed=0)
    expected = torch.nn.functional.avg_pool2d(torch.cat(whole.seen), 2)
    torch.testing.assert_close(torch.cat(half.seen), expected, atol=2e-5, rtol=0)


def test_the_numbers_follow_from_the_scores() -> None:
    normal = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 4.0], [3.0, 2.0]])
    defects = np.array([[[2.5, 0.0], [1.0, 9.0]], [[4.0, 0.0], [0.0, 1.0]]])
    judged = Judged(("a", "b"), normal, defects)
    # Of the first detector: above 3 and 4 of 4; above 1 with a tie, and a tie alone.
    np.testing.assert_allclose(judged.auroc(), [[(3 + 4) / 8, 0.0], [(1.5 + 0.5) / 8, (4 + 1) / 8]])
    np.testing.assert_allclose(judged.found(), judged.auroc().mean(0))
    z_normal, z_defects = (((values - normal.mean(0)) / normal.std(0)) @ [0.25, 0.75] for values in (normal, defects))
    fused = judged.fused([0.25, 0.75])
    np.testing.assert_allclose(fused.normal[:, 0], z_normal)
    np.testing.assert_allclose(fused.defective[..., 0], z_defects)
    alone = Judged(("a", "b"), normal[:, :1], defects[..., :1])
    np.testing.assert_allclose(judged.fused([1, 0]).auroc(), alone.auroc())
    again = Judged.together([alone, Judged(("a", "b"), normal[:, 1:], defects[..., 1:])])
    assert np.array_equal(again.defective, defects)


def test_what_cannot_be_judged_is_told() -> None:
    with pytest.raises(JobError, match=r"held out\. Got: none"):
        judge([Toy()], [], seed=0)
    with pytest.raises(JobError, match="not finite"):
        judge([Toy("nan")], frames(1), seed=0)
    alike = judge([Toy("none"), Toy()], frames(2), seed=0)
    # Ties count half.
    np.testing.assert_allclose(alike.auroc()[:, 0], 0.5)
    with pytest.raises(JobError, match="no z-scores"):
        alike.fused([1, 1])
