"""The plain auto-encoder: it learns normal images, scores each by itself, and nothing passes its bottleneck by."""

from __future__ import annotations

import pytest
import torch
from detectorkit import batches, build, run_fit, run_phase
from textures import textures, with_defects

from models.autoencoder import Autoencoder
from models.errors import ConfigError
from models.parts.maps import gaussian_blur
from models.parts.reconstruction import rebuild
from models.parts.similarity import gradient_distance
from models.runtime import Runtime

SIZE = (32, 48)
SMALL = {"width": 4, "epochs": 2, "batch_size": 4}


def autoencoder(size_px: tuple[int, int] = SIZE, **options: object) -> Autoencoder:
    torch.manual_seed(0)
    detector = build("autoencoder", size_px, **(SMALL | options))
    assert isinstance(detector, Autoencoder)
    return detector


def test_the_loss_falls_and_a_defect_stands_out():
    detector = autoencoder((64, 64), epochs=14, lr=3e-3)
    steps = run_fit(detector, batches(textures(16, 64, 64), 4), batches(textures(4, 64, 64, seed=4), 4))
    losses = [step["loss"] for step in steps if "loss" in step]
    assert losses[-1] < 0.5 * losses[0]
    normal = textures(8, 64, 64, seed=1)
    bad, masks = with_defects(normal)
    assert detector.score(bad).image.mean() > detector.score(normal).image.mean()
    heatmap = detector.score(bad).heatmap
    assert heatmap[masks].mean() > heatmap[~masks].mean()


@pytest.mark.parametrize(("size", "sigma_px"), [((32, 48), 1.75), ((64, 64), 3.5)])
def test_the_heatmap_is_the_chosen_error_smoothed_by_the_images_size(size: tuple[int, int], sigma_px: float):
    detector, images = autoencoder(size), textures(3, *size)
    with torch.no_grad():
        expected = gaussian_blur(gradient_distance(images, rebuild(detector.network, images), 3), sigma_px)
    torch.testing.assert_close(detector.score(images).heatmap, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("score", ["gradient", "difference_top"])
def test_scores_follow_the_option_in_spreads_above_held_out_normals(score: str):
    detector, held_out = autoencoder(score=score), textures(6, *SIZE, seed=3)
    run_phase(detector.learner(Runtime()), "choose", batches(held_out, 4))
    found = detector.score(held_out).image
    assert list(detector.error_score.ways)[int(detector.error_score.way)] == score
    assert float(found.mean()) == pytest.approx(0, abs=1e-4)
    assert float(found.std()) == pytest.approx(1, abs=1e-4)


def test_all_of_an_image_passes_through_the_bottleneck():
    detector = autoencoder()
    with torch.no_grad():
        # The deepest map, emptied: nothing of the image is left.
        detector.network.down[-1].register_forward_hook(lambda *given: torch.zeros_like(given[-1]))
        first, second = rebuild(detector.network, textures(2, *SIZE))
    assert torch.equal(first, second)


def test_its_score_is_chosen_by_held_out_normals():
    rebuilding, choosing = autoencoder().learner(Runtime()).phases
    assert rebuilding == ("rebuild", 2, "train")
    assert choosing == ("choose", 1, "held_out")


def test_sizes_that_do_not_halve_four_times_are_refused():
    with pytest.raises(ConfigError, match=r"multiples of 16\. Got: 40x48\."):
        autoencoder((40, 48))
