"""What scores by the detector's graph keeps the contract, too, and gives the detector's scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CASES
from contract import checks, fits, given, scores
from contract.maker import SIZE_PX, Maker
from contract.test_contract import CONTRACT, maker
from torch import Tensor

from ad_jobs.scoring.engine import OnnxRuntime
from ad_jobs.scoring.tolerances import HEATMAP_SHARE, same_scores, share_off
from models import registry
from models.detector import Detector
from models.errors import GraphError
from models.graph import to_onnx

# By the rows of tests/cases.py.
TAKEN = (
    *("padim", "padim-paper", "knn", "knn-paper", "linear", "linear-paper", "pmad", "pmad-paper", "pmad-plain"),
    *("autoencoder", "autoencoder-paper", "ssm", "mkd", "cyclegan", "cyclegan-paper"),
)
# Of scoring alone: the engine fits nothing.
SCORING = (
    scores.check_scores_are_finite_float32,
    scores.check_constant_images_score_finite,
    scores.check_score_keeps_weights,
    scores.check_score_keeps_random_generators,
    scores.check_score_keeps_its_input,
    scores.check_score_repeats,
    scores.check_rows_are_independent,
    scores.check_no_grad_changes_nothing,
    fits.check_defects_score_higher,
    fits.check_heatmap_is_hot_at_the_defect,
)


def in_engine(detector: Detector, batch: Tensor) -> Detector:
    """The detector, whose `score` is from now on the engine's."""
    engine = OnnxRuntime(detector)
    engine.score(batch)
    assert engine.name.startswith("onnxruntime "), "the first batch must show that both agree"
    detector.score = engine.score
    return detector


@pytest.mark.parametrize("check", SCORING, ids=checks.ids)
@pytest.mark.parametrize("name", TAKEN)
def test_the_engine_keeps_the_contract(name: str, check: checks.Check, monkeypatch: pytest.MonkeyPatch) -> None:
    def fitted(make: Any, size_px: tuple[int, int] = SIZE_PX) -> Detector:
        return in_engine(given.fitted(make, size_px), given.images(3, make, size_px, seed=4))

    for module in (scores, fits):
        monkeypatch.setattr(module, "fitted", fitted)
    check(maker(name))


@pytest.mark.parametrize("name", TAKEN)
def test_its_scores_are_the_detectors(name: str) -> None:
    make = maker(name)
    detector, batch = given.fitted(make), given.images(32, make)
    expected, engine = detector.score(batch), OnnxRuntime(detector)
    # The first one, of another size than those that follow, is scored by both.
    for size in (3, 1, 8, 32):
        found = engine.score(batch[:size])
        assert engine.name.startswith("onnxruntime ")
        scale = float(expected.image.abs().max())
        assert same_scores(found.image.numpy(), expected.image[:size].numpy(), scale).all()
        assert share_off(found.heatmap.numpy(), expected.heatmap[:size].numpy()) <= HEATMAP_SHARE


@pytest.mark.parametrize("name", [name for name in CONTRACT if name not in TAKEN])
def test_what_is_no_single_graph_is_refused_and_stays_with_torch(name: str) -> None:
    detector = maker(name)()
    assert not OnnxRuntime.takes(detector)
    with pytest.raises(GraphError, match=r"same steps for every image.* Got: "):
        to_onnx(detector)


def test_the_kinds_that_are_named_are_those_that_are_refused() -> None:
    assert set(registry.DETECTORS) - {CASES[name].kind for name in TAKEN} == {"fyd", "ssm_residual"}
    for kind, options in (
        ("mkd", {"weights": "random", "map": "gradient"}),
        ("linear", {"patch": 16}),
        ("ssm", {"refine": "joint"}),
        ("ssm", {"score": "published"}),
    ):
        assert not OnnxRuntime.takes(registry.create(kind, registry.configure(kind, options), maker(kind)().spec))


@pytest.mark.parametrize("way", ["gradient_hee", "difference_top_hee"])
def test_what_histograms_leave_is_a_graph_too(way: str) -> None:
    make = maker("pmad")
    detector, batch = given.fitted(make), given.images(8, make)
    detector.error_score.way.fill_(list(detector.error_score.ways).index(way))
    expected = detector.score(batch).image
    torch.testing.assert_close(in_engine(detector, batch[:3]).score(batch).image, expected, rtol=1e-5, atol=1e-5)


def test_masks_that_the_decoder_sees_are_part_of_the_graph() -> None:
    make = Maker(registry.entry("ssm"), {"batch_size": 4, "mask_blocks": True, "epochs": 2, "width": 4})
    batch = given.images(8, make)
    found = in_engine(given.fitted(make), batch[:3]).score(batch)
    torch.testing.assert_close(found.image, given.fitted(make).score(batch).image, rtol=1e-5, atol=1e-5)


def test_an_engine_that_computes_something_else_is_left_and_it_is_told(caplog: pytest.LogCaptureFixture) -> None:
    make = maker("padim")
    detector, batch = given.fitted(make), given.images(4, make)
    engine = OnnxRuntime(detector)
    # The graph is of the weights as they were.
    for stage in detector.gaussians:
        stage.scale.mean += 0.01
    found = engine.score(batch)
    assert torch.equal(found.image, detector.score(batch).image)
    assert engine.name.startswith("torch ")
    assert "is scored by torch" in caplog.text
    assert torch.equal(engine.score(batch[:2]).image, detector.score(batch[:2]).image)
