"""Frozen networks, their taps, stages and norms."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from textures import textures
from torch import nn

from models.backbones import NORMS, Backbone, Stages
from models.backbones.stages import tapped
from models.errors import ConfigError

LITE0 = "efficientnet_lite0"
TAPS = (2, 3, 4, 5)


# --- Taps


def test_lite0_taps_are_those_of_its_blocks(lite0: Backbone):
    assert [(tap.halvings, tap.channels) for tap in lite0.taps()] == [(2, 24), (3, 40), (4, 112), (5, 320)]
    shapes = [tuple(m.shape) for m in lite0(torch.rand(1, 3, 64, 96))]
    assert shapes == [(1, 24, 16, 24), (1, 40, 8, 12), (1, 112, 4, 6), (1, 320, 2, 3)]
    assert lite0.signed
    assert any(bool((m < 0).any()) for m in lite0(textures(1, 64, 64)))


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn"])
def test_vgg_taps_are_the_pools(name: str):
    vgg = Backbone(name, (1, 3, 5), "random")
    assert [(tap.halvings, tap.channels) for tap in vgg.taps()] == [(1, 64), (3, 256), (5, 512)]
    maps = vgg(textures(1, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 64, 32, 48), (1, 256, 8, 12), (1, 512, 2, 3)]
    assert not vgg.signed
    assert all(bool((m >= 0).all()) for m in maps)


def test_vgg_maps_are_those_of_torchvisions_features():
    vgg = Backbone("vgg11", (2, 5), "random")
    x = textures(2, 32, 64)
    pools, expected = 0, []
    for layer in vgg.network:
        x = layer(x)
        pools += isinstance(layer, torch.nn.MaxPool2d)
        if isinstance(layer, torch.nn.MaxPool2d) and pools in (2, 5):
            expected.append(x)
    for found, wanted in zip(vgg(textures(2, 32, 64)), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg19", "vgg16_bn"])
def test_vggs_layers_are_torchvisions(name: str):
    import torchvision.models

    with torch.device("meta"):
        wanted = getattr(torchvision.models, name)(weights=None).features
    found = Backbone(name, (1,), "random").network
    assert [str(layer).replace("inplace=True", "") for layer in wanted] == list(map(str, found))
    assert {key: t.shape for key, t in found.state_dict().items()} == {
        key: t.shape for key, t in wanted.state_dict().items()
    }


@pytest.mark.parametrize("size_px", [(64, 96), (33, 47)])
def test_lite0_is_timms_network_to_the_bit(size_px: tuple[int, int]):
    import timm

    torch.manual_seed(3)
    wanted = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True, out_indices=[0, 2, 4])
    draw = torch.rand(1)
    torch.manual_seed(3)
    found = Backbone(LITE0, (1, 3, 5), "random")
    assert torch.equal(torch.rand(1), draw), "a fit from random weights would come out otherwise"
    assert list(found.network.state_dict()) == list(wanted.state_dict())
    assert all(torch.equal(found.network.state_dict()[name], tensor) for name, tensor in wanted.state_dict().items())
    trained = Backbone(LITE0, (1, 3, 5))
    wanted.load_state_dict(trained.network.state_dict())
    wanted = wanted.eval().to(memory_format=torch.channels_last)
    images = textures(2, *size_px)
    with torch.no_grad():
        for a_map, timms in zip(trained(images), wanted(trained.prepare(images)), strict=True):
            assert torch.equal(a_map, timms)


@pytest.mark.parametrize("name", [LITE0, "vgg16"])
def test_a_network_without_its_weights_imports_neither_timm_nor_torchvision(name: str):
    code = (
        "import sys; from models.backbones import Backbone\n"
        f"Backbone({name!r}, (2, 3), None); print(*{{'timm', 'torchvision'}} & set(sys.modules))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert child.stdout.strip() == ""


def test_other_networks_of_timm_can_be_tapped():
    resnet = Backbone("resnet18", (2, 3), "random")
    assert [(tap.halvings, tap.channels) for tap in resnet.taps()] == [(2, 64), (3, 128)]
    assert resnet.norm == "imagenet"
    assert not resnet.signed


@pytest.mark.parametrize("halvings", [(), (0, 1), (3, 6), (4, 3), (3, 3)])
def test_taps_must_be_ascending_halvings(halvings: tuple[int, ...]):
    with pytest.raises(ConfigError, match=r"ascending halvings .* Got: \[.*\]\. Choose others with --set layers="):
        Backbone(LITE0, halvings, "random")


def test_an_unknown_network_is_refused_with_known_ones():
    with pytest.raises(
        ConfigError, match=r"vgg16, vgg19, efficientnet_lite0 .* Got: vgg17\. Set it with --set backbone="
    ):
        Backbone("vgg17", TAPS, "random")


def test_a_network_without_the_stride_is_refused():
    with pytest.raises(ConfigError, match=r"no maps at strides \[2\]"):
        Backbone("convnext_atto", (1, 2), "random")


# --- Vision transformers


@pytest.mark.parametrize(
    ("name", "patch", "prefix"),
    [("vit_small_patch14_reg4_dinov2", 14, 5), ("vit_small_patch16_dinov3", 16, 5), ("vit_tiny_patch16_224", 16, 1)],
)
def test_blocks_of_a_vision_transformer_are_maps_without_its_tokens(name: str, patch: int, prefix: int):
    backbone = Backbone(name, (2, 4), "random")
    images = textures(2, 3 * patch, 5 * patch)
    maps = backbone(images)
    assert [tuple(x.shape[2:]) for x in maps] == [(3, 5), (3, 5)]
    assert [tap.channels for tap in backbone.taps()] == [x.shape[1] for x in maps]
    # By timm's own words: the tokens after those of class and registers, of the second block and the fourth.
    network = backbone.network.network.model
    with torch.no_grad():
        tokens = network.forward_intermediates(
            backbone.prepare(images),
            indices=[1, 3],
            output_fmt="NLC",
            return_prefix_tokens=True,
            intermediates_only=True,
        )
    for found, (patches, dropped) in zip(maps, tokens, strict=True):
        assert dropped.shape[1] == prefix
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), patches)


def test_a_vision_transformer_takes_what_its_patch_divides():
    backbone = Backbone("vit_small_patch14_dinov2", (3,), "random")
    with pytest.raises(ConfigError, match=r"patches of 14 px.*64x96.*Choose --size 70x98"):
        backbone(textures(1, 64, 96))


@pytest.mark.parametrize("taps", [(0, 3), (11, 13)])
def test_blocks_that_a_transformer_lacks_are_refused(taps: tuple[int, ...]):
    with pytest.raises(ConfigError, match=r"blocks, ascending from 1 to 12.*--set layers=\[6,12\]"):
        Backbone("vit_tiny_patch16_224", taps, "random")


@pytest.mark.parametrize(
    ("name", "taps"), [("vit_tiny_patch16_224", (1, 3)), ("convnext_atto", (2, 5)), ("resnet18", (2, 4))]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_timm_saves_of_a_whole_network_loads_into_its_maps(
    name: str, taps: tuple[int, ...], suffix: str, tmp_path: Path
):
    import timm

    torch.manual_seed(1)
    whole = timm.create_model(name, pretrained=False).eval()
    file = tmp_path / f"weights{suffix}"
    save_file(whole.state_dict(), file) if suffix == ".safetensors" else torch.save(whole.state_dict(), file)
    backbone = Backbone(name, taps, str(file))
    assert backbone.licence == ""
    images = textures(1, 64, 96)
    features = timm.create_model(
        name, pretrained=False, features_only=True, out_indices=backbone_indices(name, taps), **sizes(name)
    )
    copied = {key.replace(".", "_"): value for key, value in whole.state_dict().items()}
    features.load_state_dict(
        {key: copied[key.removeprefix("model.").replace(".", "_")] for key in features.state_dict()}
    )
    with torch.no_grad():
        expected = features.eval()(backbone.prepare(images))
    for found, wanted in zip(backbone(images), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def backbone_indices(name: str, taps: tuple[int, ...]) -> list[int]:
    return [tap - (2 if name.startswith("convnext") else 1) for tap in taps]


def sizes(name: str) -> dict[str, bool]:
    return {"dynamic_img_size": True} if name.startswith("vit") else {}


def test_channels_that_come_last_are_refused():
    with pytest.raises(ConfigError, match="swin_tiny_patch4_window7_224, whose channels come last"):
        Backbone("swin_tiny_patch4_window7_224", (2, 3), "random")


def test_norms_and_licences_are_those_of_timms_weights(monkeypatch: pytest.MonkeyPatch):
    import timm

    assert Backbone("vit_tiny_patch16_224", (1,), "random").norm == "half"
    assert Backbone("vit_small_patch16_dinov3", (1,), "random").norm == "imagenet"
    torch.manual_seed(0)
    whole = timm.create_model("vit_small_patch16_dinov3", pretrained=False)
    monkeypatch.setattr(timm, "create_model", saying_pretrained(timm.create_model, whole))
    downloaded = Backbone("vit_small_patch16_dinov3", (1,), "timm")
    assert (downloaded.licence, downloaded.record()["licence"]) == ("dinov3-license", "dinov3-license")


def saying_pretrained(create: Callable[..., nn.Module], whole: nn.Module) -> Callable[..., nn.Module]:
    """timm's `create_model`, whose download gives `whole`."""
    return lambda *names, **options: whole if options.get("pretrained") else create(*names, **options)


@pytest.mark.parametrize("name", [LITE0, "vgg11", "resnet18"])
def test_stages_one_after_the_other_give_the_tapped_maps(name: str):
    backbone = Backbone(name, (2, 3), "random" if name != LITE0 else "auto")
    images = textures(2, 64, 96)
    expected = backbone(images)
    stages = Stages(backbone, (64, 96))
    assert [tuple(shape) for shape in stages.shapes] == [tuple(m.shape[1:]) for m in expected]
    for found, wanted in zip(stages(images), expected, strict=True):
        assert torch.equal(found, wanted)
    # What lies behind the last tap is not kept.
    assert sum(p.numel() for p in stages.parameters()) < sum(p.numel() for p in backbone.parameters())


def test_stages_keep_the_statistics_of_a_network_that_is_trained():
    stages = Stages(Backbone("resnet18", (2, 3), "random"), (32, 32)).train()
    assert not any(part.training for part in stages.modules())


@pytest.mark.parametrize("name", ["hrnet_w18_small", "selecsls42"])  # branches, and layers that return lists
def test_a_network_that_is_no_chain_is_whole_or_refused(name: str):
    with pytest.raises(ConfigError, match=rf"chain of layers .* Got: {name}\. Choose efficientnet_lite0, a vgg"):
        Stages(Backbone(name, (2, 3), "random"), (64, 64))
    whole = tapped(Backbone(name, (2, 3), "random"), (64, 96))
    assert [tuple(x.shape[1:]) for x in whole(textures(1, 64, 96))] == whole.shapes


# --- Frozen


def test_a_backbone_is_frozen_and_stays_in_eval(lite0: Backbone):
    lite0.train()
    assert not any(part.training for part in lite0.modules())
    assert not any(parameter.requires_grad for parameter in lite0.parameters())
    before = {name: tensor.clone() for name, tensor in lite0.state_dict().items()}
    lite0(textures(4, 32, 32))
    assert all(torch.equal(before[name], tensor) for name, tensor in lite0.state_dict().items())


# --- Norms


def test_norms_follow_the_weights_convention():
    for name, norm in ((LITE0, "lite"), ("vgg16", "none"), ("resnet18", "imagenet")):
        assert Backbone(name, (3,), "random").norm == norm


@pytest.mark.parametrize(
    ("norm", "black", "white"),
    [
        ("none", (0.0,) * 3, (1.0,) * 3),
        ("imagenet", (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225), (0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225)),
        ("caffe", (-123.68, -116.779, -103.939), (255 - 123.68, 255 - 116.779, 255 - 103.939)),
        ("lite", (-127 / 128,) * 3, (1.0,) * 3),
    ],
)
def test_black_and_white_are_what_the_weights_were_trained_on(norm: str, black, white):
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in NORMS[norm])
    torch.testing.assert_close((0 - mean) / std, torch.tensor(black, dtype=torch.float64))
    torch.testing.assert_close((1 - mean) / std, torch.tensor(white, dtype=torch.float64))


def test_the_norm_is_applied_to_the_input():
    plain = Backbone("vgg11", (1,), "random", "none")
    normed = Backbone("vgg11", (1,), "random", "imagenet")
    normed.network.load_state_dict(plain.network.state_dict())
    images = textures(2, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMS["imagenet"])
    torch.testing.assert_close(normed(images)[0], plain((images - mean) / std)[0])


def test_grey_images_are_taken_as_three_equal_channels(lite0: Backbone):
    grey = textures(2, 32, 32, channels=1)
    for one, three in zip(lite0(grey), lite0(grey.expand(-1, 3, -1, -1)), strict=True):
        assert torch.equal(one, three)


def test_an_unknown_norm_is_refused():
    with pytest.raises(
        ConfigError, match=r"one of native, none, imagenet, half, clip, caffe, lite\. Got: l2\. .*--set norm="
    ):
        Backbone("vgg11", (1,), "random", "l2")
