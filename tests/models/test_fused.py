"""A fused detector: what its members see of its input, how their scores are put together, and what it is on disk."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from detectorkit import build
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ad_jobs.images.decode import decode
from ad_jobs.images.model_input import FULL_SCALE, to_input
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.scoring.engine import OnnxRuntime
from models import artifact, registry
from models.detector import Detector, InputSpec
from models.errors import ConfigError
from models.fused import Fused, Member, assembled, common_input
from models.parts.maps import enlarged
from models.parts.resample import as_input
from models.record import networks
from models.runtime import Runtime


def member(kind: str, detector: Detector, model_id: str = "0" * 12) -> Member:
    config = detector.config.model_dump(mode="json")
    return Member(kind=kind, config=config, spec=detector.spec, model_id=model_id, source=detector.source_record())


def padim(size_px: tuple[int, int] = (64, 96), seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    return build("padim", size_px, backbone="resnet18", weights="random", layers=(2, 3), dims=16)


def linear(size_px: tuple[int, int] = (32, 48)) -> Detector:
    spec = InputSpec(channels=1, height_px=size_px[0], width_px=size_px[1])
    detector = registry.create("linear", registry.configure("linear", {}), spec).eval()
    generator = torch.Generator().manual_seed(1)
    for name, buffer in detector.named_buffers():
        if name.startswith("weights_"):
            buffer.copy_(0.01 * torch.randn(buffer.shape, generator=generator))
    return detector


def fused() -> Fused:
    """A grey member of half the size, and one in colour of the whole; spreads 2 and 4, of heatmaps 5 and 8."""
    members = linear(), padim()
    told = [member("linear", members[0], "a" * 12), member("padim", members[1], "b" * 12)]
    made = assembled(told, members, [0.25, 0.75])
    made.score_spread.copy_(torch.tensor([2.0, 4.0]))
    made.heatmap_spread.copy_(torch.tensor([5.0, 8.0]))
    return made


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 64, 96, generator=torch.Generator().manual_seed(3))


def test_scores_are_the_weighted_mean_of_the_members_in_their_spreads() -> None:
    made, batch = fused(), pictures()
    one, other = linear(), padim()
    grey, own = one.score(as_input(batch, one.spec).clamp(0, 1)), other.score(batch)
    found = made.score(batch)
    torch.testing.assert_close(found.image, 0.25 * grey.image / 2 + 0.75 * own.image / 4)
    expected = 0.25 * enlarged(grey.heatmap, (64, 96)) / 5 + 0.75 * own.heatmap / 8
    torch.testing.assert_close(found.heatmap, expected)


def test_the_input_is_the_largest_members_and_in_colour_if_one_is() -> None:
    specs = [
        InputSpec(channels=1, height_px=64, width_px=32),
        InputSpec(channels=3, height_px=32, width_px=48, needs_anomalous=True),
    ]
    assert common_input(specs) == InputSpec(channels=3, height_px=64, width_px=48)


def decoded(picture: NDArray[np.uint8], policy: PixelPolicy) -> NDArray[np.uint16]:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return decode(file.getvalue(), policy, Limits()).frames[0].pixels


@pytest.mark.parametrize("colour", [False, True])
def test_a_member_sees_what_its_own_policy_gives(colour: bool) -> None:
    """To the steps of stored pixels: grey, half the size, of a picture of which neither size is a part."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (150, 131, 3) if colour else (150, 131), np.uint8)
    of_fused = PixelPolicy(channels=3, height_px=64, width_px=96)
    of_member = PixelPolicy(channels=1, height_px=32, width_px=48)
    expected = to_input(decoded(picture, of_member), 1)
    whole = torch.from_numpy(to_input(decoded(picture, of_fused), 3)).unsqueeze(0)
    seen = as_input(whole, linear().spec)[0]
    assert np.abs(seen.numpy() - expected).max() <= 1.01 / FULL_SCALE


def test_it_is_saved_with_its_members_and_their_networks(tmp_path: Path) -> None:
    made, batch = fused(), pictures()
    artifact.save(tmp_path, "fused", made, {}, {})
    opened = artifact.load(tmp_path)
    assert all(torch.equal(*pair) for pair in zip(opened.detector.score(batch), made.score(batch), strict=True))
    members = opened.record["source"]["members"]
    assert [(one["kind"], one["model_id"], one["weight"]) for one in members] == [
        ("linear", "a" * 12, 0.25),
        ("padim", "b" * 12, 0.75),
    ]
    assert members[0]["source"] is None
    assert networks(opened.record["source"]) == [members[1]["source"]]
    assert networks(members[1]["source"])[0]["name"] == "resnet18"
    assert networks(None) == []


def test_it_has_no_fit_of_its_own() -> None:
    for refused in (lambda: fused().learner(Runtime()), lambda: registry.preset("fused", "fast")):
        with pytest.raises(ConfigError, match="Fit its members, then `retroscan fuse MODEL MODEL --out MODEL`"):
            refused()
    assert registry.entry("fused") not in registry.DETECTORS.values()


def test_a_fused_member_is_refused() -> None:
    made = fused()
    with pytest.raises(ConfigError, match="Name its members instead"):
        assembled([member("fused", made)], [made], [1.0])


def test_it_is_one_graph_where_all_members_are() -> None:
    taking_a_gradient = build("mkd", (64, 96), weights="random", map="gradient")
    assert not assembled([member("mkd", taking_a_gradient)], [taking_a_gradient], [1.0]).one_graph
    members = [padim(), padim((32, 48), seed=1)]
    made = assembled([member("padim", one) for one in members], members, [0.5, 0.5])
    assert made.one_graph
    batch, engine = pictures(5), OnnxRuntime(made)
    # Of another size than what the first batch had, and the tracer.
    for size in (3, 5, 1):
        found = engine.score(batch[:size])
        assert engine.name.startswith("onnxruntime ")
        torch.testing.assert_close(found, made.score(batch[:size]), rtol=1e-4, atol=1e-4)
