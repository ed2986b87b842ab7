"""What is particular to a family of networks; all else is alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """Networks that are built, fed and weighted alike."""

    # From a name and taps (halvings of the input), an untrained network whose forward gives the tapped maps.
    build: Callable[[str, Sequence[int]], nn.Module]
    # The input convention that its weights were trained with, a key of NORMS.
    norm: str
    # Where `weights=auto` finds them.
    weights: str
    # Whether tapped maps of a network hold negative values.
    signed: Callable[[str], bool]
    # A state dict as the network names its tensors, whoever saved it.
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda state: state
