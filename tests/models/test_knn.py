"""The memory of patches as a detector: what a patch is, by hand, and what a place counts for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectorkit import batches, build, run_fit
from textures import textures, with_defects

from models.backbones import Backbone
from models.detector import Batch
from models.errors import ConfigError, NonFiniteLoss
from models.knn import KNN
from models.runtime import Runtime

SIZE = (64, 96)
RANDOM = {"backbone": "resnet18", "weights": "random", "layers": (2, 3), "batch_size": 4}


def knn(size_px: tuple[int, int] = SIZE, **options: object) -> KNN:
    torch.manual_seed(0)
    detector = build("knn", size_px, **options)
    assert isinstance(detector, KNN)
    return detector


def test_scores_are_one_less_the_cosine_to_the_most_alike_patch():
    """Every patch remembered: by hand, in float64."""
    images, new = textures(6, *SIZE), textures(3, *SIZE, seed=5)
    detector = knn(**RANDOM, patch=1, items=6 * 16 * 24, candidates=6 * 16 * 24, blur=0.0)
    assert [phase.name for phase in detector.learner(Runtime()).phases] == ["memory"]
    run_fit(detector, batches(images, 4), [])

    torch.manual_seed(0)
    source = Backbone("resnet18", (2, 3), "random")

    def stages(x: torch.Tensor) -> list[torch.Tensor]:
        first, second = source(x)
        second = F.interpolate(second, first.shape[-2:], mode="bilinear", align_corners=False)
        return [F.normalize(m.double(), dim=1).flatten(2).transpose(1, 2) for m in (first, second)]

    with torch.no_grad():
        remembered, seen = stages(images), stages(new)
    cosine = sum(x @ m.flatten(0, 1).T for x, m in zip(seen, remembered, strict=True)) / 2
    far = (1 - cosine.amax(2)).view(3, 1, 16, 24)
    expected = F.interpolate(far, SIZE, mode="bilinear", align_corners=False).squeeze(1).float()
    found = detector.score(new)
    torch.testing.assert_close(found.heatmap, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.image, expected.flatten(1).amax(1), rtol=1e-4, atol=1e-6)


def test_what_was_seen_scores_nothing_and_a_defect_more_than_what_was_not():
    detector = knn(items=2000)
    images = textures(16, *SIZE)
    run_fit(detector, batches(images, 8), [])
    new = textures(6, *SIZE, seed=9)
    assert float(detector.score(images).image.max()) < float(detector.score(new).image.min())
    assert bool((detector.score(with_defects(new)[0]).image > detector.score(new).image).all())


def test_a_patch_is_known_wherever_it_lay_unless_its_place_counts():
    image = textures(1, *SIZE)
    shifted = image.roll(32, 3)
    anywhere, there = knn(**RANDOM, patch=1, blur=0.0), knn(**RANDOM, patch=1, blur=0.0, place=10.0)
    for detector in (anywhere, there):
        run_fit(detector, batches(image, 1), [])
        assert float(detector.score(image).image) < 1e-6
    # Away from the seam and the borders, whose padding the network sees.
    inner = (slice(None), slice(24, 40), slice(56, 72))
    free, bound = (detector.score(shifted).heatmap[inner].mean() for detector in (anywhere, there))
    assert float(bound) > 3 * float(free)


def test_a_place_counts_by_its_squared_distance():
    """The same patch, a third of the width away, with nothing else to be like."""
    detector = knn(**RANDOM, patch=1, items=1, candidates=1, place=2.0)
    seen = detector.patches(textures(1, *SIZE))[0]
    first, second = seen[0].clone(), seen[0].clone()
    second[-2:] = seen[8][-2:]
    detector.memory.fit(first.unsqueeze(0), seed=0)
    assert detector.memory(second.view(1, 1, -1)).item() == pytest.approx(2.0 * (8 / 24) ** 2, rel=1e-5)


def test_a_vision_transformer_is_remembered_and_shifted_stages_are_not_needed():
    detector = knn((70, 98), backbone="vit_small_patch14_dinov2", weights="random", layers=(2, 4), items=50)
    assert detector.grid == (5, 7)
    run_fit(detector, batches(textures(4, 70, 98), 2), [])
    assert detector.score(textures(2, 70, 98, seed=2)).heatmap.shape == (2, 70, 98)


def test_a_size_that_a_transformer_cannot_take_is_refused():
    with pytest.raises(ConfigError, match=r"Choose --size 70x98"):
        knn((64, 96), backbone="vit_small_patch14_dinov2", weights="random", layers=(2, 4))


def test_features_that_are_not_finite_stop_the_fit():
    detector = knn(**RANDOM)
    learner = detector.learner(Runtime())
    learner.start("memory")
    detector.backbone.stages[0][0].weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteLoss):
        learner.step(Batch(textures(2, *SIZE), torch.arange(2)))
