"""Choosing among ways to score by synthetic defects in held-out normals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from textures import textures

from models.detector import Batch
from models.parts.defects import KINDS
from models.parts.error_score import WAYS, ErrorScore, ErrorScoreFit
from models.runtime import Runtime


def maps(gradient: float, difference: float, spot: float = 0.0) -> torch.Tensor:
    """Errors [2, 1, 20, 20] that are the same everywhere but in a hundredth of the pixels."""
    found = torch.stack([torch.full((1, 20, 20), gradient), torch.full((1, 20, 20), difference)]).double()
    found[0, :, :2, :2] += spot
    return found


def test_ways_are_the_mean_and_the_mean_of_the_worst_twentieth():
    gradient_top, gradient, difference_top, difference = ErrorScore().every_way(maps(0.2, 0.3, spot=1.0))[0].tolist()
    assert (gradient, difference, difference_top) == pytest.approx((0.21, 0.3, 0.3))
    # 4 of 20 pixels.
    assert gradient_top == pytest.approx(0.2 + 4 / 20)


@pytest.mark.parametrize("best", range(len(WAYS)))
def test_the_way_that_finds_most_is_chosen(best: int):
    rng = np.random.default_rng(best)
    normal = torch.from_numpy(rng.normal(5, 2, (40, len(WAYS))))
    abnormal = torch.from_numpy(rng.normal(5, 2, (30, len(KINDS), len(WAYS))))
    abnormal[..., best] += 2
    score = ErrorScore()
    score.choose(normal, abnormal, "auto")
    assert int(score.way) == best
    # As by scikit-learn, kind by kind, ties included.
    normal, abnormal = normal.round(), abnormal.round()
    score.choose(normal, abnormal, "auto")
    means = [
        np.mean(
            [roc_auc_score([0] * 40 + [1] * 30, torch.cat([normal[:, w], kind[:, w]])) for kind in abnormal.unbind(1)]
        )
        for w in range(len(WAYS))
    ]
    assert int(score.way) == int(np.argmax(means))


def test_of_ways_that_find_as_much_the_first_is_taken():
    rng = np.random.default_rng(0)
    normal = torch.from_numpy(rng.normal(5, 2, (200, 1))).expand(-1, len(WAYS)).clone()
    abnormal = normal[:, None].expand(-1, len(KINDS), -1) + 1.0
    abnormal = abnormal.clone()
    score = ErrorScore()
    # A little more of the third is chance, and much more is not.
    abnormal[..., 2] += 0.02
    score.choose(normal, abnormal, "auto")
    assert int(score.way) == 0
    abnormal[..., 2] += 0.5
    score.choose(normal, abnormal, "auto")
    assert int(score.way) == 2


def test_a_score_is_in_spreads_of_normals_and_an_image_alone_has_none():
    score = ErrorScore()
    normal = torch.tensor([[1.0, 2.0, 4.0, 3.0], [3.0, 2.0, 8.0, 5.0]], dtype=torch.float64)
    score.choose(normal, torch.zeros(0, len(KINDS), len(WAYS)), "difference")
    image, heat = score(maps(0.0, 10.0))
    assert image.item() == pytest.approx((10 - 4) / np.sqrt(2))
    assert torch.equal(heat, maps(0.0, 10.0)[1])
    score.choose(normal[:1], torch.zeros(0, len(KINDS), len(WAYS)), "difference")
    assert score(maps(0.0, 10.0))[0].item() == pytest.approx(7)


def test_only_the_first_held_out_images_get_defects_and_batches_do_not_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("models.parts.trial.WITH_DEFECTS", 3)
    images = textures(5, 32, 32)

    def errors(images_BCHW: torch.Tensor) -> torch.Tensor:
        grey = images_BCHW.mean(1).double()
        return torch.stack([grey, 1 - grey])

    def fitted(sizes: tuple[int, ...]) -> torch.Tensor:
        fit = ErrorScoreFit(ErrorScore(), errors, Runtime(seed=4))
        first = 0
        for size in sizes:
            fit.step(Batch(images[first : first + size], torch.arange(first, first + size)))
            first += size
        fit.finish("auto")
        return fit.found

    whole = fitted((5,))
    assert whole[:, 0].isfinite().all()
    assert whole[:3].isfinite().all()
    assert whole[3:, 1:].isnan().all()
    assert torch.equal(fitted((2, 1, 2)).nan_to_num(-1), whole.nan_to_num(-1))


def test_an_image_is_scored_by_the_chosen_way_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = torch.rand(2, 5, 12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    score = ErrorScore()
    every = score.every_way(errors)
    monkeypatch.setattr(ErrorScore, "every_way", None)
    for way in range(len(WAYS)):
        score.way.fill_(way)
        assert torch.equal(score(errors)[0], every[:, way])
