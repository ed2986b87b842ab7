"""How a learning rate falls over the epochs of a phase: what it is multiplied by after so many of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

# (epochs done, all epochs) to a factor in [0, 1].
Schedule = Callable[[float, int], float]


def cosine(epoch: float, epochs: int) -> float:
    """Half a wave from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def steps(*shares: float, factor: float) -> Schedule:
    """Times `factor` at each of these shares of the epochs, which are rounded up."""
    return lambda epoch, epochs: factor ** sum(epoch >= math.ceil(share * epochs) for share in shares)


def linear(start: float) -> Schedule:
    """1 up to a share `start` of the epochs, then evenly to 0."""
    return lambda epoch, epochs: 1 - max(0.0, epoch - start * epochs) / (epochs - start * epochs)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Of all its parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate
