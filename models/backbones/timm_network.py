"""Any network of timm that gives feature maps: convolutional ones by stride, vision transformers by block."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.backbones.family import Family, check_halvings
from models.backbones.lites import package_file, renamed
from models.backbones.norms import NORMS
from models.errors import ConfigError

# Their stages end with ReLU.
UNSIGNED = ("resnet", "wide_resnet", "resnext")
# By our names, TensorFlow's variants, whose weights they are.
LITES = {f"efficientnet_lite{number}": f"tf_efficientnet_lite{number}" for number in (1, 2)}


class VisionTransformer(nn.Module):
    """timm's transformer as maps of its blocks [B, C, H / patch, W / patch], of images whose sides the patch divides.

    Class and register tokens are dropped, and what is learned of positions is interpolated to the image's grid.
    """

    def __init__(self, network: nn.Module, name: str, patch: int) -> None:
        super().__init__()
        self.network = network
        self.name, self.patch = name, patch

    def forward(self, x: Tensor) -> list[Tensor]:
        if x.shape[-2] % self.patch or x.shape[-1] % self.patch:
            nearest = [max(1, round(side / self.patch)) * self.patch for side in x.shape[-2:]]
            raise ConfigError(
                f"{self.name} sees patches of {self.patch} px, of which both sides must be multiples.",
                f"{x.shape[-2]}x{x.shape[-1]}",
                f"Choose --size {nearest[0]}x{nearest[1]}.",
            )
        maps: list[Tensor] = self.network(x)
        return maps


def build_timm(name: str, taps: Sequence[int]) -> nn.Module:
    """timm's untrained network of this name, whose forward gives the maps at these taps, shallow to deep.

    A tap of a convolutional network is a halving of the input, one of a vision transformer a block, counted from 1.

    Raises:
        ConfigError: timm has no such network, or it has no such maps.
    """
    import timm

    timm_name = LITES.get(name, name)
    if not timm.is_model(timm_name):
        raise ConfigError(
            "backbone must be vgg11, vgg13, vgg16, vgg19, efficientnet_lite0 or a network of timm.",
            name,
            "Set it with --set backbone=efficientnet_lite0.",
        )
    strides, channels_last = _plan(name, timm_name)
    if channels_last:
        raise ConfigError(
            "A backbone must give maps of channels, height and width.",
            f"{name}, whose channels come last",
            "Choose a convolutional network or a plain vision transformer, such as vit_small_patch14_dinov2.",
        )
    if len(set(strides)) == 1:
        return _transformer(name, timm_name, strides, taps)
    check_halvings(taps)
    missing = [2**tap for tap in taps if 2**tap not in strides]
    if missing:
        raise ConfigError(
            f"{name} has no maps at strides {missing}.",
            f"maps at strides {strides}",
            f"Choose among {[stride.bit_length() - 1 for stride in strides]} halvings, as in --set layers=[3,4].",
        )
    indices = [strides.index(2**tap) for tap in taps]
    network: nn.Module = timm.create_model(timm_name, pretrained=False, features_only=True, out_indices=indices)
    return network


def _plan(name: str, timm_name: str) -> tuple[list[int], bool]:
    """The strides of all maps that the network can give, and whether their channels come last; without memory."""
    import timm

    try:
        with torch.device("meta"):
            network = timm.create_model(timm_name, pretrained=False, features_only=True)
    # timm's words for a network without feature maps.
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ConfigError(
            "A backbone must give feature maps.", f"{name} ({error})", "Choose another backbone."
        ) from error
    strides = [int(one["reduction"]) for one in network.feature_info.info]
    return strides, str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC")


def _transformer(name: str, timm_name: str, strides: Sequence[int], taps: Sequence[int]) -> nn.Module:
    import timm

    if not all(1 <= tap <= len(strides) for tap in taps):
        raise ConfigError(
            f"Taps of {name} are its blocks, ascending from 1 to {len(strides)}.",
            list(taps),
            f"Choose with --set layers=[{len(strides) // 2},{len(strides)}].",
        )
    network = timm.create_model(
        timm_name, pretrained=False, features_only=True, out_indices=[tap - 1 for tap in taps], dynamic_img_size=True
    )
    return VisionTransformer(network, name, strides[0])


def _config(name: str) -> Any:
    """What timm says of the weights that it would download."""
    import timm

    return timm.get_pretrained_cfg(LITES.get(name, name))


def _norm(name: str) -> str:
    if name in LITES:
        return "lite"
    config = _config(name)
    if config is None:
        return "imagenet"
    for norm, convention in NORMS.items():
        if (config.mean, config.std) == convention:
            return norm
    raise ConfigError(
        f"{name} was trained on images of another normalisation.",
        f"mean {config.mean}, std {config.std}",
        f"Choose the nearest of {', '.join(NORMS)} with --set norm=imagenet.",
    )


def _licence(name: str) -> str:
    config = _config(name)
    return "" if config is None else str(config.license or "")


def _rename(state: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """A whole network's state by the names of a network of feature maps, which timm flattens and wraps."""
    if "_conv_stem.weight" in state:
        import timm

        # The package of efficientnet_lite2. Names alone, no memory.
        with torch.device("meta"):
            state = renamed(state, list(timm.create_model(LITES["efficientnet_lite2"], pretrained=False).state_dict()))
    saved = {key.replace(".", "_"): value for key, value in state.items()}
    found = {}
    for name in names:
        flat = name.removeprefix("network.").removeprefix("model.").replace(".", "_")
        for key in (flat, f"model_{flat}", f"network_model_{flat}"):
            if key in saved:
                found[name] = saved[key]
    return found


FAMILY = Family(
    build=build_timm,
    norm=_norm,
    weights=lambda name: "package" if name == "efficientnet_lite2" else "timm",
    signed=lambda name: not name.startswith(UNSIGNED),
    licence=_licence,
    packages={"efficientnet_lite2": partial(package_file, 2)},
    rename=_rename,
)
