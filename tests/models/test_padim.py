"""PaDiM: distances by hand, the numbers stored when it was a configuration of FYD, and its phases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectorkit import batches, build, run_fit
from textures import textures, with_defects

from models.backbones import Backbone
from models.detector import Batch
from models.errors import ConfigError, NonFiniteLoss
from models.padim import PaDiM
from models.runtime import Runtime

SIZE = (64, 96)
STORED = Path(__file__).parents[1] / "golden" / "padim.json"
RANDOM = {"backbone": "resnet18", "weights": "random", "layers": (2, 3), "batch_size": 4}


def padim(size_px: tuple[int, int] = SIZE, **options: object) -> PaDiM:
    torch.manual_seed(0)
    detector = build("padim", size_px, **options)
    assert isinstance(detector, PaDiM)
    return detector


def fitted(detector: PaDiM, size_px: tuple[int, int] = SIZE) -> PaDiM:
    run_fit(detector, batches(textures(24, *size_px), 16), batches(textures(8, *size_px, seed=4), 16))
    return detector


@pytest.mark.parametrize(
    ("bank", "options"), [("stage", {}), ("joint", {"layers": (2, 3, 4), "patch": 1, "dims": 100})]
)
def test_scores_are_those_of_fyd_without_alignment(bank: str, options: dict[str, object]):
    """Stored when FYD's defaults were this method, by its code of then."""
    stored = json.loads(STORED.read_text())[bank]
    normal = textures(2, *SIZE, seed=1)
    found = fitted(padim(bank=bank, **options)).score(torch.cat([normal, with_defects(normal)[0]]))
    np.testing.assert_allclose(found.image, stored["image"], rtol=1e-3)
    np.testing.assert_allclose(found.heatmap.mean((0, 2)), stored["rows"], rtol=1e-3)


def test_joint_distances_are_mahalanobis():
    """Stages side by side on the finest grid, a random choice of dimensions: by hand, in float64."""
    detector = padim(**RANDOM, bank="joint", patch=1, dims=12, blur=0.0)
    images, new = textures(16, *SIZE), textures(3, *SIZE, seed=5)
    assert [phase.name for phase in detector.learner(Runtime()).phases] == ["statistics"]
    run_fit(detector, batches(images, 5), [])

    torch.manual_seed(0)
    source = Backbone("resnet18", (2, 3), "random")

    def joined(x: torch.Tensor) -> torch.Tensor:
        first, second = source(x)
        both = torch.cat([first, F.interpolate(second, first.shape[-2:], mode="nearest")], 1)
        return both[:, detector.gaussians[0].dims].flatten(2).double()

    with torch.no_grad():
        train, seen = joined(images), joined(new)
    mean = train.mean(0)
    centred = train - mean
    covariance = torch.einsum("bdp,bep->pde", centred, centred) / 15
    covariance += 0.01 * covariance.diagonal(dim1=1, dim2=2).mean() * torch.eye(12)
    away = (seen - mean).permute(0, 2, 1)
    distance = torch.einsum("bpd,pde,bpe->bp", away, torch.linalg.inv(covariance), away).sqrt()
    expected = F.interpolate(distance.view(3, 1, 16, 24), SIZE, mode="bilinear").squeeze(1).float()
    torch.testing.assert_close(detector.score(new).heatmap, expected, rtol=1e-3, atol=1e-3)


def test_dimensions_are_chosen_by_the_seed_and_kept_with_the_model():
    first, again = padim(**RANDOM, dims=10), padim(**RANDOM, dims=10)
    assert torch.equal(first.gaussians[1].dims, again.gaussians[1].dims)
    assert len(set(first.gaussians[1].dims.tolist())) == 10
    assert {"gaussians.0.dims", "gaussians.1.dims"} <= first.state_dict().keys()
    assert padim(**RANDOM, dims=0).gaussians[0].dims.tolist() == list(range(64))


def test_stages_are_levelled_by_held_out_normals():
    detector = padim(**RANDOM, blur=0.0)
    held_out = textures(8, *SIZE, seed=3)
    run_fit(detector, batches(textures(20, *SIZE), 5), batches(held_out, 4))
    with torch.no_grad():
        for stage, x in zip(detector.gaussians, detector.maps(held_out), strict=True):
            level = stage(x)
            assert float(level.mean()) == pytest.approx(0, abs=1e-2)
            assert float(level.std()) == pytest.approx(1, abs=2e-2)


@pytest.mark.parametrize("bank", ["stage", "joint"])
def test_a_defect_stands_out_where_it_is(bank: str):
    detector = fitted(padim((64, 64), layers=(2, 3, 4), bank=bank), (64, 64))
    normal = textures(8, 64, 64, seed=1)
    bad, masks = with_defects(normal)
    found = detector.score(bad)
    assert found.image.min() > detector.score(normal).image.max()
    assert sum(bool(h[m].mean() > h[~m].mean()) for h, m in zip(found.heatmap, masks, strict=True)) == 8


@pytest.mark.parametrize("phase", ["statistics", "scale", "level"])
def test_images_that_are_not_finite_stop_every_phase(phase: str):
    learner = padim(**RANDOM).learner(Runtime())
    learner.start(phase)
    with pytest.raises(NonFiniteLoss, match=rf"phase '{phase}' is not finite \(features=nan\)"):
        learner.step(Batch(torch.full((2, 3, *SIZE), float("nan")), torch.arange(2)))


def test_the_record_says_where_the_backbone_came_from():
    found = padim(**RANDOM).source_record()
    weights = {"weights": "random", "sha256": "", "licence": ""}
    assert found == {"name": "resnet18", **weights, "norm": "imagenet", "halvings": [2, 3]}


def test_images_too_small_for_a_stage_are_refused():
    with pytest.raises(ConfigError, match=r"Every stage needs a position\. Got: 16x64\. Choose a larger --size"):
        padim((16, 64), backbone="vgg11", weights="random", layers=(3, 5))
