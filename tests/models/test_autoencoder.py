"""The plain auto-encoder: it learns normal images, scores each by itself, and nothing passes its bottleneck by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectorkit import batches, build, run_fit
from safetensors.torch import load_file, save_file
from textures import textures, with_defects

from models import artifact
from models.autoencoder import Autoencoder
from models.errors import ArtifactError, ConfigError
from models.parts.maps import gaussian_blur
from models.parts.reconstruction import rebuild
from models.parts.similarity import gms_map
from models.record import DETECTOR, WEIGHTS, file_sha256, model_id
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
    losses = [step["loss"] for step in run_fit(detector, batches(textures(16, 64, 64), 4), [])]
    assert losses[-1] < 0.5 * losses[0]
    normal = textures(8, 64, 64, seed=1)
    bad, masks = with_defects(normal)
    assert detector.score(bad).image.mean() > detector.score(normal).image.mean()
    heatmap = detector.score(bad).heatmap
    assert heatmap[masks].mean() > heatmap[~masks].mean()


@pytest.mark.parametrize(("size", "sigma_px"), [((32, 48), 1.75), ((64, 64), 3.5)])
def test_the_heatmap_is_gradient_similarity_smoothed_by_the_images_size(size: tuple[int, int], sigma_px: float):
    detector, images = autoencoder(size), textures(3, *size)
    with torch.no_grad():
        expected = gaussian_blur(gms_map(images, rebuild(detector.network, images)), sigma_px)
    torch.testing.assert_close(detector.score(images).heatmap, expected, atol=1e-5, rtol=1e-4)


def test_scores_follow_the_option():
    images = textures(3, *SIZE)
    for score, reduce in (("mean", torch.mean), ("max", torch.amax)):
        found = autoencoder(score=score).score(images)
        torch.testing.assert_close(found.image, reduce(found.heatmap.flatten(1), 1))


def test_all_of_an_image_passes_through_the_bottleneck():
    detector = autoencoder()
    with torch.no_grad():
        # The deepest map, emptied: nothing of the image is left.
        detector.network.down[-1].register_forward_hook(lambda *given: torch.zeros_like(given[-1]))
        first, second = rebuild(detector.network, textures(2, *SIZE))
    assert torch.equal(first, second)


def test_it_has_one_phase_and_needs_no_held_out_images():
    (phase,) = autoencoder().learner(Runtime()).phases
    assert phase == ("rebuild", 2, "train")


def test_sizes_that_do_not_halve_four_times_are_refused():
    with pytest.raises(ConfigError, match=r"multiples of 16\. Got: 40x48\."):
        autoencoder((40, 48))


# The configuration of a model of format 1, when the auto-encoder was an option of SSM.
OF_SSM: dict[str, Any] = {
    "model": "autoencoder",
    "batch_size": 4,
    "cell_weights": "squared",
    "cells": [2, 4, 8],
    "color_weight": 0.0,
    "epochs": 2,
    "gms_scales": 4,
    "lambda_mask": 0.01,
    "legacy_1d": False,
    "lr": 1e-3,
    "mask_blocks": False,
    "mask_seed": 8,
    "mask_variety": True,
    "masks": "checkerboard",
    "refine": "none",
    "refine_quantile": 0.95,
    "refine_ratio": 0.8,
    "refine_steps": 1,
    "score": "mean",
    "smoothing": 7.0,
    "weight_decay": 1e-5,
    "width": 4,
}


def write_older(folder: Path, detector: Autoencoder, **changed: Any) -> None:
    """A model of format 1 with the weights of `detector`, as SSM wrote it."""
    artifact.save(folder, "autoencoder", detector, {"channels": 3, "height_px": SIZE[0], "width_px": SIZE[1]}, {})
    constants = {name: torch.zeros(()) for name in ("normal_below", "score_mean", "score_spread", "uncovered_share")}
    save_file(load_file(folder / WEIGHTS) | constants, folder / WEIGHTS)
    record = json.loads((folder / DETECTOR).read_text())
    record |= {"format": 1, "kind": "ssm", "config": OF_SSM | changed, "weights_sha256": file_sha256(folder / WEIGHTS)}
    (folder / DETECTOR).write_text(json.dumps(record | {"model_id": model_id(record)}))


@pytest.mark.parametrize("score", ["mean", "max"])
def test_a_model_that_was_an_option_of_ssm_scores_as_it_did(tmp_path: Path, score: str):
    detector, images = autoencoder(score=score), textures(2, *SIZE)
    write_older(tmp_path, detector, score=score)
    opened = artifact.load(tmp_path).detector
    assert isinstance(opened, Autoencoder)
    for found, expected in zip(opened.score(images), detector.score(images), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("option", "value"), [("gms_scales", 3), ("smoothing", 0.0), ("color_weight", 1.0), ("score", "max+mse")]
)
def test_one_that_would_score_otherwise_is_refused(tmp_path: Path, option: str, value: Any):
    write_older(tmp_path, autoencoder(), **{option: value})
    with pytest.raises(ArtifactError, match=option):
        artifact.load(tmp_path)
