"""What is particular to a family of networks; all else is alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from models.errors import ConfigError

HALVINGS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Family:
    """Networks that are built, fed and weighted alike."""

    # From a name and taps, an untrained network whose forward gives the tapped maps.
    build: Callable[[str, Sequence[int]], nn.Module]
    # The input convention that a network's weights were trained with, a key of NORMS.
    norm: Callable[[str], str]
    # Where `weights=auto` finds those of a network.
    weights: Callable[[str], str]
    # Whether tapped maps of a network hold negative values.
    signed: Callable[[str], bool]
    # The licence of the weights that are found there, as SPDX or their owner calls it; "" where nobody says.
    licence: Callable[[str], str]
    # By name, where the installed package has its weights, if there is one.
    packages: dict[str, Callable[[], Path]]
    # A state dict as the network names its tensors, whoever saved it; the second are the network's own names.
    rename: Callable[[dict[str, Tensor], Sequence[str]], dict[str, Tensor]] = lambda state, _: state


def check_halvings(halvings: Sequence[int]) -> None:
    """Refuse taps that are no halvings of the input.

    Raises:
        ConfigError: with what they are.
    """
    if any(halving not in HALVINGS for halving in halvings):
        raise ConfigError(
            f"Taps are ascending halvings of the input out of {HALVINGS}.",
            list(halvings),
            "Choose others with --set layers=[2,3,4,5].",
        )
