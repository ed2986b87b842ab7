"""MKD: the published network and losses, and its scores and maps against slow references."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectorkit import batches
from mkdkit import LITE0, ROUND_OFF, SIZE_PX, VGG, build, with_options
from scipy import ndimage
from textures import textures
from torch import Tensor, nn

from models.errors import ConfigError, InputError
from models.mkd import MKD, disagreement
from models.parts.batch_norm import BatchNorm2d
from models.runtime import Runtime


@pytest.fixture(scope="module")
def _vgg_128() -> MKD:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build((128, 128), **VGG)


@pytest.fixture
def vgg_128(_vgg_128: MKD) -> MKD:
    return copy.deepcopy(_vgg_128)


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


def test_convolutions_have_no_bias_and_batch_norm_follows_all_but_a_blocks_last(detector: MKD):
    for block in detector.cloner.blocks:
        layers = list(block)
        convolutions = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
        for i in convolutions:
            assert layers[i].bias is None
            assert layers[i].kernel_size == (3, 3)
            followed = i + 1 < len(layers) and isinstance(layers[i + 1], BatchNorm2d)
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
        assert kinds == [nn.Conv2d, BatchNorm2d, nn.ReLU] * (convolutions - 1) + last


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
def test_source_and_cloner_agree_on_sizes_that_are_no_multiple(source: str, size_px: tuple[int, int], sources):
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
    assert torch.equal(grey.score(images).image, colour.score(images.expand(-1, 3, -1, -1).contiguous()).image)


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


def test_the_gradient_flows_through_both_networks(detector: MKD):
    """Through the cloner alone, as the paper's text has it, the map is another."""
    images = textures(1, *SIZE_PX)
    found = with_options(detector, map="gradient").score(images).heatmap[0].numpy()
    with torch.no_grad():
        source = detector.source_maps(images)
    x = images.clone().requires_grad_()
    direction, value = disagreement(source[1:], detector.cloner(x)[1:])
    (direction + detector.config.lambda_val * value).sum().backward()
    assert x.grad is not None
    raw = x.grad[0].abs().sum(0).double().numpy()
    alone = opened(ndimage.gaussian_filter(raw, 4 * SIZE_PX[0] / 128))
    assert np.abs(found - alone).max() > 0.01 * found.max()


def test_the_cosine_map_is_the_distance_at_each_position(detector: MKD):
    images = textures(2, *SIZE_PX)
    heatmaps = with_options(detector, map="cosine").score(images).heatmap.numpy()
    raw = torch.zeros(2, *SIZE_PX)
    with torch.no_grad():
        for source, clone in zip(detector.source(images)[1:], detector.cloner(images)[1:], strict=True):
            cosine = (source * clone).sum(1) / source.norm(dim=1) / clone.norm(dim=1)
            raw += F.interpolate(1 - cosine[:, None], SIZE_PX, mode="bilinear")[:, 0]
    for heatmap, one in zip(heatmaps, raw.double().numpy(), strict=True):
        expected = ndimage.gaussian_filter(one, 4 * SIZE_PX[0] / 128)
        np.testing.assert_allclose(heatmap, expected, rtol=1e-4, atol=1e-5)


def test_a_flat_gradient_gives_a_cold_map():
    detector = build(**LITE0, map="gradient")
    with torch.no_grad():
        for convolution in (part for part in detector.modules() if isinstance(part, nn.Conv2d)):
            convolution.weight.zero_()
    scores = detector.score(textures(2, *SIZE_PX))
    assert torch.isfinite(scores.image).all()
    assert not scores.heatmap.any()


def test_a_gradient_map_inside_inference_mode_is_refused(detector: MKD):
    images = textures(1, *SIZE_PX)
    with torch.inference_mode(), pytest.raises(InputError, match=r"autograd\. Got: .*inference_mode.*plainly"):
        with_options(detector, map="gradient").score(images)


def test_a_cosine_map_inside_inference_mode_is_the_same(detector: MKD):
    images = textures(2, *SIZE_PX)
    plain = detector.score(images)
    with torch.inference_mode():
        inside = detector.score(images)
    assert torch.equal(plain.heatmap, inside.heatmap)


# --- Configurations that cannot be


@pytest.mark.parametrize(
    ("options", "size_px", "message"),
    [
        ({"layers": [3, 4], "layers_score": [4, 5]}, SIZE_PX, r"layers_score must be among layers \[3, 4\]"),
        ({"layers_score": []}, SIZE_PX, r"layers_score must be among.* Got: \[\]"),
        ({"layers": [5, 4], "layers_score": [4]}, SIZE_PX, r"ascending halvings.* Got: \[5, 4\].*--set layers="),
        ({"layers": [4, 6], "layers_score": [4]}, SIZE_PX, r"out of \(1, 2, 3, 4, 5\)\. Got: \[4, 6\]"),
        ({"backbone": "vgg11"}, (64, 16), r"at least 32 px a side.* Got: 64x16\. Choose another --size"),
    ],
)
def test_an_impossible_configuration_names_the_option(options, size_px, message):
    with pytest.raises(ConfigError, match=message):
        build(size_px, **{"weights": "random", **options})
