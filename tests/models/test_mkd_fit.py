"""MKD's fit: its phases, what it keeps in memory, what it averages, and that it learns.

Golden loss curves lie in tests/golden/mkd.json. After a change that is meant to move them, write them anew with
`REGENERATE=1 python -m pytest tests/models/test_mkd_fit.py -k golden`, and say so under "Numbers changed".
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectorkit import batches
from mkdkit import LITE0, ROUND_OFF, SIZE_PX, VGG, build, with_options
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from textures import textures, with_defects
from torch import Tensor, nn

from models.detector import Batch
from models.errors import ConfigError, NonFiniteLoss
from models.mkd import MKD, disagreement
from models.runtime import Runtime

GOLDEN = Path(__file__).parents[1] / "golden" / "mkd.json"
OXFORD = Path(__file__).parents[3] / "shared" / "weights" / "vgg16_features_oxford.safetensors"
# Golden curves run in float64, so that they pin the formulas and not a machine's rounding.
GOLDEN_RTOL = 1e-4


def whole_fit(detector: MKD, images: Tensor, size: int = 4) -> list[float]:
    """A fit in order of position; the losses of every step of `distil`."""
    learner, losses = detector.learner(Runtime()), []
    for phase in learner.phases:
        learner.start(phase.name)
        for _ in range(phase.epochs):
            for batch in batches(images, size):
                step = learner.step(batch)
                losses += [float(step["loss"])] if "loss" in step else []
            learner.end_epoch()
        learner.finish(phase.name)
    return losses


def test_phases_follow_the_options(detector: MKD):
    def names(**options: Any) -> list[str]:
        return [phase.name for phase in with_options(detector, **options).learner(Runtime()).phases]

    assert names() == ["source", "distil", "statistics"]
    assert names(source_rescale="none") == ["distil", "statistics"]
    assert names(selection="last") == ["distil"]


def test_source_maps_kept_in_memory_train_as_live_ones(detector: MKD):
    images = textures(6, *SIZE_PX)
    live = with_options(copy.deepcopy(detector), epochs=3, cache_mib=0)
    kept = with_options(detector, epochs=3, cache_mib=64)
    np.testing.assert_allclose(whole_fit(kept, images), whole_fit(live, images), rtol=ROUND_OFF)


def test_the_source_runs_once_an_image_and_only_within_the_memory_allowed(detector: MKD):
    images = textures(6, *SIZE_PX)

    def runs(cache_mib: int) -> int:
        copied = with_options(copy.deepcopy(detector), epochs=3, selection="last", cache_mib=cache_mib)
        seen = []
        copied.source.register_forward_hook(lambda *call: seen.append(len(call[1][0])))
        whole_fit(copied, images)
        return sum(seen)

    assert runs(64) == 6
    assert runs(0) == 6 * 4  # the pass over the source's statistics, and three epochs


def test_rms_is_that_of_the_source_over_all_images(detector: MKD):
    images = textures(6, *SIZE_PX)
    with torch.no_grad():
        expected = [float(m.double().square().mean().sqrt()) for m in detector.source(images)]
    learner = detector.learner(Runtime())
    learner.start("source")
    for batch in batches(images, 4):
        assert learner.step(batch) == {}
    learner.end_epoch()
    learner.finish("source")
    assert detector.source_scale.tolist() == pytest.approx(expected, rel=ROUND_OFF)
    with torch.no_grad():
        scaled = detector.source_maps(images)
    assert [float(m.square().mean()) for m in scaled] == pytest.approx([1.0] * 4, rel=1e-4)


def test_rms_over_two_workers_is_that_of_all_images(detector: MKD):
    images = textures(6, *SIZE_PX)
    shares = [images[:2], images[2:]]
    learners = [copy.deepcopy(detector).learner(Runtime()) for _ in shares]
    for learner, share in zip(learners, shares, strict=True):
        learner.start("source")
        learner.step(batches(share, 4)[0])
    total = sum(learner.state_dict()["squares"] for learner in learners)
    both = detector.learner(Runtime(all_reduce_sum=lambda _: total, world=2))
    both.start("source")
    both.end_epoch()
    both.finish("source")
    with torch.no_grad():
        expected = [float(m.double().square().mean().sqrt()) for m in detector.source(images)]
    assert detector.source_scale.tolist() == pytest.approx(expected, rel=ROUND_OFF)


def test_a_silent_source_layer_is_named(detector: MKD):
    with torch.no_grad():
        for parameter in detector.source.parameters():
            parameter.zero_()
    learner = detector.learner(Runtime())
    learner.start("source")
    learner.step(batches(textures(4, *SIZE_PX), 4)[0])
    with pytest.raises(ConfigError, match=r"Got: a layer that is zero .*source_rescale=none"):
        learner.finish("source")


def test_the_late_average_is_the_mean_of_the_last_thirds_weights_with_fresh_statistics():
    images = textures(8, *SIZE_PX)
    torch.manual_seed(0)
    detector = build(**LITE0, epochs=6, batch_size=4)
    learner = detector.learner(Runtime())
    late: list[dict[str, Tensor]] = []
    for phase in learner.phases:
        learner.start(phase.name)
        for _ in range(phase.epochs):
            for batch in batches(images, 4):
                learner.step(batch)
            learner.end_epoch()
            if phase.name == "distil":
                late.append({n: p.detach().clone() for n, p in detector.cloner.named_parameters()})
        learner.finish(phase.name)
    for name, weight in detector.cloner.named_parameters():
        torch.testing.assert_close(weight.detach(), (late[4][name] + late[5][name]) / 2, rtol=1e-5, atol=1e-7)

    # The first batch norm sees the images through one convolution: its statistics by hand.
    first: nn.Conv2d = detector.cloner.blocks[0][0]
    norm: nn.BatchNorm2d = detector.cloner.blocks[0][1]
    with torch.no_grad():
        seen = [first(batch.images) for batch in batches(images, 4)]
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variance = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in seen]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-6)
    assert norm.momentum == 0.1


def test_a_state_in_memory_does_not_follow_the_fit_that_gave_it():
    """Averaged weights of one learner must not be those of another that took over its state."""
    images = textures(4, *SIZE_PX)
    torch.manual_seed(0)
    detector = build(**LITE0, epochs=3)
    learner = detector.learner(Runtime())
    learner.start("distil")
    for _ in range(3):
        learner.step(batches(images, 4)[0])
        learner.end_epoch()
    state = learner.state_dict()
    follower = copy.deepcopy(detector).learner(Runtime())
    follower.start("distil")
    follower.load_state_dict(copy.deepcopy(state))
    before = {name: tensor.clone() for name, tensor in learner.late.items()}
    follower.step(batches(images, 4)[0])
    follower.end_epoch()
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.late.items())


def test_non_finite_images_stop_a_fit_with_the_losses_named(detector: MKD):
    learner = detector.learner(Runtime())
    learner.start("distil")
    poison = Batch(torch.full((2, 3, *SIZE_PX), float("nan")), torch.arange(2))
    with pytest.raises(NonFiniteLoss, match=r"'distil' is not finite \(loss=nan.*Lower the learning rate"):
        learner.step(poison)


SETTLING = 30  # further steps, in which the batch norms' running statistics come to the weights


def falls_tenfold(detector: MKD, images: Tensor, most: int = 300) -> int:
    """Steps until the loss on one fixed batch is a tenth of the first; trains on until statistics have settled."""
    learner = detector.learner(Runtime())
    (batch,) = batches(images, len(images))
    learner.start("source")
    learner.step(batch)
    learner.finish("source")
    learner.start("distil")
    losses = [float(learner.step(batch)["loss"])]
    while losses[-1] > losses[0] / 10:
        assert len(losses) < most, f"the loss fell from {losses[0]:.3f} to {losses[-1]:.3f} in {most} steps"
        losses.append(float(learner.step(batch)["loss"]))
    for _ in range(SETTLING):
        learner.step(batch)
    return len(losses)


def auroc_of_defects(detector: MKD, size_px: tuple[int, int]) -> float:
    held_out = textures(16, *size_px, seed=1)
    scores = torch.cat([detector.score(images).image for images in (held_out, with_defects(held_out)[0])])
    return float(roc_auc_score([0] * 16 + [1] * 16, scores.numpy()))


# An untrained source tells direction only.
@pytest.mark.parametrize(("options", "auroc"), [(LITE0, 0.95), (VGG, 0.8)], ids=["lite0", "vgg16-random"])
def test_the_loss_falls_tenfold_and_defects_stand_out(options: dict[str, str], auroc: float):
    detector = build((64, 64), **options, score="flat", source_rescale="rms", lr=3e-3)
    falls_tenfold(detector, textures(16, 64, 64))
    assert auroc_of_defects(detector, (64, 64)) >= auroc


@pytest.mark.shared
def test_the_loss_falls_tenfold_with_vgg16_weights_of_oxford():
    if not OXFORD.is_file():
        pytest.skip(f"needs {OXFORD.name} in shared/weights beside the project")
    weights = {"weights": str(OXFORD), "norm": "caffe", "source_rescale": "rms"}
    detector = build((64, 64), backbone="vgg16", **weights, score="flat", lr=3e-3)
    falls_tenfold(detector, textures(16, 64, 64))
    assert auroc_of_defects(detector, (64, 64)) >= 0.95


# --- Golden curves


def golden_detector(source: str, folder: Path) -> MKD:
    """A float64 detector that no library's initialisation decides: weights from numpy, or the package's own."""
    rng = np.random.default_rng(11)

    def he(shape: torch.Size) -> Tensor:
        scale = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.0
        return torch.from_numpy((scale * rng.standard_normal(shape)).astype(np.float32))

    if source == "vgg11":
        bare = build(SIZE_PX, backbone="vgg11", weights="random")
        state = {name: he(tensor.shape) for name, tensor in bare.source.network.state_dict().items()}
        save_file(state, folder / "vgg11.safetensors")
        detector = build(SIZE_PX, backbone="vgg11", weights=str(folder / "vgg11.safetensors"))
    else:
        detector = build(SIZE_PX, **LITE0)
    with torch.no_grad():
        for parameter in detector.cloner.parameters():
            if parameter.ndim == 4:
                parameter.copy_(he(parameter.shape))
    return detector.double()


@pytest.mark.parametrize("source", ["lite0", "vgg11"])
def test_golden_loss_curve(source: str, tmp_path: Path):
    detector = with_options(golden_detector(source, tmp_path), epochs=10, selection="avg_late")
    images = textures(8, *SIZE_PX).double()
    curve = whole_fit(detector, images)  # two steps an epoch
    assert len(curve) == 20
    with torch.no_grad():
        direction, value = disagreement(detector.source_maps(images), detector.cloner(images))
    found = {"loss": curve, "direction": direction.mean(0).tolist(), "value": value.mean(0).tolist()}
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    if os.environ.get("REGENERATE") == "1":
        golden[source] = found
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    for name, values in found.items():
        np.testing.assert_allclose(values, golden[source][name], rtol=GOLDEN_RTOL, err_msg=name)
