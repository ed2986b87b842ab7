"""Any network of timm that gives feature maps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from models.backbones.family import Family
from models.errors import ConfigError

# Their stages end with ReLU.
UNSIGNED = ("resnet", "wide_resnet", "resnext")


def build_timm(name: str, timm_name: str, halvings: Sequence[int]) -> nn.Module:
    """timm's untrained `timm_name`, whose forward gives the maps at these halvings.

    Raises:
        ConfigError: timm has no such network, or it has no map at one of the halvings; the message calls it `name`.
    """
    import timm

    if not timm.is_model(timm_name):
        raise ConfigError(
            "backbone must be vgg11, vgg13, vgg16, vgg19, efficientnet_lite0 or a network of timm.",
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


FAMILY = Family(
    build=lambda name, halvings: build_timm(name, name, halvings),
    norm="imagenet",
    weights="timm",
    signed=lambda name: not name.startswith(UNSIGNED),
)
