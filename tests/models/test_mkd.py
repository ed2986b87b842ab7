"""MKD: the published network and losses, its maps against slow references, and what a fit does.

Golden loss curves lie in tests/golden/mkd.json. After a change that is meant to move them, write them anew with
`REGENERATE=1 python -m pytest tests/models/test_mkd.py -k golden`, and say so under "Numbers changed".
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from textures import textures, with_defects
from torch import Tensor, nn

from models import registry
from models.detector import Batch, ConfigError, InputError, InputSpec, NonFiniteLoss, Runtime
from models.mkd import MKD, VGG16_WIDTHS, Cloner, disagreement

GOLDEN = Path(__file__).parents[1] / "golden" / "mkd.json"
OXFORD = Path(__file__).parents[3] / "shared" / "weights" / "vgg16_features_oxford.safetensors"
SIZE_PX = (32, 64)
# Float32 sums of some hundred terms in another order.
ROUND_OFF = 2e-5
# Golden curves run in float64, so that they pin the formulas and not a machine's rounding.
GOLDEN_RTOL = 1e-4

LITE0 = {"backbone": "efficientnet_lite0"}
VGG = {"backbone": "vgg16", "weights": "random"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def build(size_px: tuple[int, int] = SIZE_PX, channels: int = 3, **options: Any) -> MKD:
    spec = InputSpec(channels=channels, height_px=size_px[0], width_px=size_px[1])
    detector = registry.create("mkd", registry.configure("mkd", options), spec)
    assert isinstance(detector, MKD)
    return detector.eval()


@pytest.fixture(scope="module")
def _vgg_128() -> MKD:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build((128, 128), **VGG)


@pytest.fixture
def vgg_128(_vgg_128: MKD) -> MKD:
    return copy.deepcopy(_vgg_128)


@pytest.fixture(scope="module")
def sources() -> dict[str, MKD]:
    """One detector of each source at 32x64; copied before use."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {"lite0": build(**LITE0), "vgg16": build(**VGG)}


@pytest.fixture(params=["lite0", "vgg16"])
def detector(request: pytest.FixtureRequest, sources: dict[str, MKD]) -> MKD:
    """A detector of either source, with options changed by `with_options`."""
    return copy.deepcopy(sources[request.param])


def with_options(detector: MKD, **changed: Any) -> MKD:
    """The same networks under other options of scoring or fitting."""
    detector.config = detector.config.model_copy(update=changed)
    return detector


def batches(images: Tensor, size: int) -> list[Batch]:
    index = torch.arange(len(images))
    return [Batch(images[i : i + size], index[i : i + size]) for i in range(0, len(images), size)]


# --- The published network


def test_shapes_are_those_of_the_published_table(vgg_128: MKD):
    image = torch.rand(1, 3, 128, 128)
    expected = [(1, 128, 32, 32), (1, 256, 16, 16), (1, 512, 8, 8), (1, 512, 4, 4)]
    with torch.no_grad():
        assert [tuple(m.shape) for m in vgg_128.source(image)] == expected
        assert [tuple(m.shape) for m in vgg_128.cloner(image)] == expected
        assert tuple(vgg_128.cloner.blocks[0](image).shape) == (1, 16, 64, 64)


def test_parameter_counts_are_the_published_ones(vgg_128: MKD):
    assert sum(p.numel() for p in vgg_128.cloner.parameters()) == 343_984
    assert sum(p.numel() for p in vgg_128.source.parameters()) == 14_714_688


def test_equal_cloner_has_the_parameters_of_the_ablation():
    cloner = Cloner({2: 128, 3: 256, 4: 512, 5: 512}, widths=VGG16_WIDTHS, signed=False, bn_affine=True)
    assert sum(p.numel() for p in cloner.parameters()) == 14_715_968


def test_convolutions_have_no_bias_and_batch_norm_follows_all_but_a_blocks_last(detector: MKD):
    for block in detector.cloner.blocks:
        layers = list(block)
        convolutions = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
        for i in convolutions:
            assert layers[i].bias is None
            assert layers[i].kernel_size == (3, 3)
            followed = i + 1 < len(layers) and isinstance(layers[i + 1], nn.BatchNorm2d)
            assert followed == (i != convolutions[-1])


def test_no_relu_of_a_vgg_source_or_a_cloner_works_in_place(vgg_128: MKD):
    """An in-place ReLU would overwrite what the gradient map needs."""
    relus = [layer for layer in vgg_128.modules() if isinstance(layer, nn.ReLU)]
    assert len(relus) == 13 + 13
    assert not any(relu.inplace for relu in relus)


def test_vgg_cloner_has_a_relu_after_every_convolution_and_ends_blocks_with_max_pooling(vgg_128: MKD):
    for block, convolutions in zip(vgg_128.cloner.blocks, (2, 2, 3, 3, 3), strict=True):
        kinds = [type(layer) for layer in block]
        last = [nn.Conv2d, nn.ReLU, nn.MaxPool2d]
        assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * (convolutions - 1) + last


def test_bn_affine_off_leaves_convolutions_alone():
    cloner = Cloner({2: 8, 3: 8}, widths=[4] * 5, signed=False, bn_affine=False)
    assert all(p.ndim == 4 for p in cloner.parameters())


def test_source_is_frozen_and_stays_in_eval(detector: MKD):
    detector.train()
    assert detector.cloner.training
    assert not any(part.training for part in detector.source.modules())
    assert not any(p.requires_grad for p in detector.source.parameters())
    assert all(p.requires_grad for p in detector.cloner.parameters())


def test_a_fit_leaves_the_source_alone(detector: MKD):
    before = copy.deepcopy(detector.source.state_dict())
    learner = detector.learner(Runtime())
    learner.start("distil")
    learner.step(batches(textures(4, *SIZE_PX), 4)[0])
    for name, tensor in detector.source.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("size_px", [(40, 72), (33, 47), (96, 64)])
@pytest.mark.parametrize("source", ["lite0", "vgg16"])
def test_source_and_cloner_agree_on_sizes_that_are_no_multiple(
    source: str, size_px: tuple[int, int], sources
):
    """EfficientNet rounds odd sizes up, VGG's pools round down; the cloner follows its source."""
    detector, image = sources[source], torch.rand(1, 3, *size_px)
    with torch.no_grad():
        shapes = [[m.shape for m in maps] for maps in (detector.source(image), detector.cloner(image))]
    assert shapes[0] == shapes[1]


def test_a_grey_image_scores_as_its_colour_copy():
    torch.manual_seed(0)
    grey = build(channels=1, **LITE0)
    torch.manual_seed(0)
    colour = build(channels=3, **LITE0)
    images = textures(2, *SIZE_PX, channels=1)
    assert torch.equal(
        grey.score(images).image, colour.score(images.expand(-1, 3, -1, -1).contiguous()).image
    )


# --- Losses


def test_identical_maps_disagree_in_nothing():
    maps = [torch.rand(3, 4, 5, 6), torch.rand(3, 2, 3, 3)]
    direction, value = disagreement(maps, maps)
    assert direction.shape == value.shape == (3, 2)
    assert direction.abs().max() < 1e-6
    assert not value.any()


def test_scaling_the_clone_changes_the_value_term_alone():
    source, clone = [torch.rand(3, 4, 5, 6)], [torch.rand(3, 4, 5, 6)]
    plain = disagreement(source, clone)
    scaled = disagreement(source, [3 * clone[0]])
    torch.testing.assert_close(plain[0], scaled[0], rtol=0, atol=1e-6)
    assert (plain[1] - scaled[1]).abs().min() > 0.1


def test_terms_are_those_computed_by_hand():
    # One image, two channels, two pixels. Pixel by pixel both are orthogonal; over the whole map they are not.
    source = torch.tensor([[[[1.0, 2.0]], [[0.0, 0.0]]]])
    clone = torch.tensor([[[[0.0, 2.0]], [[1.0, 0.0]]]])
    direction, value = disagreement([source], [clone])
    assert direction.item() == pytest.approx(1 - 4 / (5**0.5 * 5**0.5))
    assert value.item() == pytest.approx((1 + 0 + 1 + 0) / 4)


def test_terms_are_per_image():
    source, clone = [torch.rand(5, 4, 3, 3)], [torch.rand(5, 4, 3, 3)]
    together = torch.stack(disagreement(source, clone))
    alone = [torch.stack(disagreement([source[0][i : i + 1]], [clone[0][i : i + 1]])) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone, 1))


def test_the_training_loss_is_the_mean_of_both_terms_over_all_layers(detector: MKD):
    images = textures(4, *SIZE_PX)
    detector = with_options(detector, lambda_val=0.25)
    detector.source_scale.copy_(torch.tensor([0.5, 1.0, 2.0, 3.0]))
    reference = copy.deepcopy(detector).train()
    learner = detector.learner(Runtime())
    learner.start("distil")
    losses = learner.step(batches(images, 4)[0])
    with torch.no_grad():
        pairs = zip(reference.source(images), reference.source_scale, reference.cloner(images), strict=True)
        direction = value = 0.0
        for source, scale, clone in pairs:
            s, c = (m.double().reshape(4, -1).numpy() for m in (source / scale, clone))
            cosine = (s * c).sum(1) / np.linalg.norm(s, axis=1) / np.linalg.norm(c, axis=1)
            direction += (1 - cosine).mean()
            value += ((s - c) ** 2).mean()
    assert float(losses["direction"]) == pytest.approx(direction, rel=ROUND_OFF)
    assert float(losses["value"]) == pytest.approx(value, rel=ROUND_OFF)
    assert float(losses["loss"]) == pytest.approx(direction + 0.25 * value, rel=ROUND_OFF)


# --- Scores and maps


@pytest.mark.parametrize("layers_score", [(3, 4, 5), (2, 3, 4, 5), (4,)])
def test_the_flat_score_sums_the_scoring_layers(detector: MKD, layers_score: tuple[int, ...]):
    images = textures(3, *SIZE_PX)
    detector = with_options(detector, layers_score=layers_score, lambda_val=0.3, score="flat")
    with torch.no_grad():
        direction, value = disagreement(detector.source_maps(images), detector.cloner(images))
    chosen = [detector.config.layers.index(layer) for layer in layers_score]
    expected = (direction + 0.3 * value)[:, chosen].sum(1)
    torch.testing.assert_close(detector.score(images).image, expected, rtol=ROUND_OFF, atol=0)


def test_the_max_score_is_the_hottest_pixel(detector: MKD):
    image, heatmap = with_options(detector, score="max").score(textures(3, *SIZE_PX))
    assert torch.equal(image, heatmap.amax((1, 2)))


def reference_gradient(detector: MKD, image: Tensor) -> np.ndarray:
    """Sum over colours of the absolute gradient of one image's score, through both networks. float64 [H, W]"""
    x = image[None].clone().requires_grad_()
    direction, value = disagreement(detector.source_maps(x), detector.cloner(x))
    chosen = [detector.config.layers.index(layer) for layer in detector.config.layers_score]
    (direction + detector.config.lambda_val * value)[:, chosen].sum().backward()
    assert x.grad is not None
    return x.grad[0].abs().sum(0).double().numpy()


def opened(heatmap: np.ndarray) -> np.ndarray:
    """scipy's grey opening with the 3x3 cross; a reflected border equals one that is ignored."""
    cross = ndimage.generate_binary_structure(2, 1)
    return ndimage.grey_opening(heatmap, footprint=cross, mode="reflect")


def test_the_gradient_map_is_the_published_pipeline(detector: MKD):
    """Gradient of each image alone, blur sigma 4 at 128 px, opening; batched in the detector, one by one here."""
    images = textures(3, *SIZE_PX)
    detector = with_options(detector, map="gradient")
    heatmaps = detector.score(images).heatmap.numpy()
    for image, heatmap in zip(images, heatmaps, strict=True):
        expected = opened(ndimage.gaussian_filter(reference_gradient(detector, image), 4 * SIZE_PX[0] / 128))
        np.testing.assert_allclose(heatmap, expected, rtol=0, atol=1e-4 * expected.max())


def test_the_papers_scaling_comes_before_blur_and_opening(detector: MKD):
    images = textures(2, *SIZE_PX)
    detector = with_options(detector, map="gradient", map_scale="per_image")
    for image, heatmap in zip(images, detector.score(images).heatmap.numpy(), strict=True):
        raw = reference_gradient(detector, image)
        raw -= raw.min()
        unit = np.clip(raw / np.percentile(raw, 99), 0, 1)
        expected = opened(ndimage.gaussian_filter(unit, 4 * SIZE_PX[0] / 128))
        np.testing.assert_allclose(heatmap, expected, rtol=0, atol=1e-3)


def test_blur_and_opening_can_be_left_out(detector: MKD):
    images = textures(1, *SIZE_PX)
    plain = with_options(detector, map="gradient", blur=0.0, opening=False).score(images).heatmap[0].numpy()
    expected = reference_gradient(detector, images[0])
    np.testing.assert_allclose(plain, expected, rtol=0, atol=1e-4 * expected.max())


def test_the_gradient_flows_through_both_networks_unless_the_source_is_detached(detector: MKD):
    images = textures(1, *SIZE_PX)
    options = {"map": "gradient", "score": "flat", "blur": 0.0, "opening": False}
    both = with_options(detector, **options).score(images)
    cloner_alone = with_options(detector, detach_source=True).score(images)
    assert torch.equal(both.image, cloner_alone.image)
    assert (both.heatmap - cloner_alone.heatmap).abs().max() > 0.01 * both.heatmap.max()
    x = images.clone().requires_grad_()
    with torch.no_grad():
        source = detector.source_maps(images)
    direction, value = disagreement(source[1:], detector.cloner(x)[1:])
    (direction + detector.config.lambda_val * value).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(cloner_alone.heatmap, x.grad.abs().sum(1), rtol=1e-3, atol=1e-6)


def test_the_cosine_map_is_the_distance_at_each_position(detector: MKD):
    images = textures(2, *SIZE_PX)
    heatmap = with_options(detector, map="cosine", blur=0.0).score(images).heatmap
    expected = torch.zeros_like(heatmap)
    with torch.no_grad():
        for source, clone in zip(detector.source(images)[1:], detector.cloner(images)[1:], strict=True):
            cosine = (source * clone).sum(1) / source.norm(dim=1) / clone.norm(dim=1)
            expected += F.interpolate(1 - cosine[:, None], SIZE_PX, mode="bilinear")[:, 0]
    torch.testing.assert_close(heatmap, expected, rtol=1e-4, atol=1e-5)


def test_a_flat_gradient_gives_a_cold_map_and_no_division_by_zero():
    detector = build(**LITE0, map="gradient", map_scale="per_image")
    with torch.no_grad():
        for convolution in (part for part in detector.modules() if isinstance(part, nn.Conv2d)):
            convolution.weight.zero_()
    scores = detector.score(textures(2, *SIZE_PX))
    assert torch.isfinite(scores.image).all()
    assert not scores.heatmap.any()


def test_a_gradient_map_inside_inference_mode_is_refused(detector: MKD):
    images = textures(1, *SIZE_PX)
    with (
        torch.inference_mode(),
        pytest.raises(InputError, match=r"autograd\. Got: .*inference_mode.*plainly"),
    ):
        with_options(detector, map="gradient").score(images)


def test_a_cosine_map_inside_inference_mode_is_the_same(detector: MKD):
    images = textures(2, *SIZE_PX)
    plain = detector.score(images)
    with torch.inference_mode():
        inside = detector.score(images)
    assert torch.equal(plain.heatmap, inside.heatmap)


# --- Fits


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
    total = learners[0]._squares + learners[1]._squares
    both = detector.learner(Runtime(all_reduce_sum=lambda _: total, world=2))
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


# --- Configurations that cannot be


@pytest.mark.parametrize(
    ("options", "size_px", "message"),
    [
        ({"layers": [3, 4], "layers_score": [4, 5]}, SIZE_PX, r"layers_score must be among layers \[3, 4\]"),
        ({"layers_score": []}, SIZE_PX, r"layers_score must be among.* Got: \[\]"),
        (
            {"cloner": "equal"},
            SIZE_PX,
            r"cloner=equal .* Got: backbone=efficientnet_lite0\. Use --set cloner=compact",
        ),
        (
            {"layers": [5, 4], "layers_score": [4]},
            SIZE_PX,
            r"ascending halvings.* Got: \[5, 4\].*--set layers=",
        ),
        ({"layers": [4, 6], "layers_score": [4]}, SIZE_PX, r"out of \(1, 2, 3, 4, 5\)\. Got: \[4, 6\]"),
        ({"backbone": "vgg11"}, (64, 16), r"at least 32 px a side.* Got: 64x16 .*--size"),
    ],
)
def test_an_impossible_configuration_names_the_option(options, size_px, message):
    with pytest.raises(ConfigError, match=message):
        build(size_px, **{"weights": "random", **options})
