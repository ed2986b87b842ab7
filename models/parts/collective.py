"""A sum over workers that gradients pass through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# A new tensor, the same on every rank: the sum of all ranks' tensors of this shape. The argument stays as it is.
AllReduceSum = Callable[[Tensor], Tensor]


def sum_over_ranks(tensor: Tensor, all_reduce_sum: AllReduceSum) -> Tensor:
    """The sum of all ranks' tensors, differentiable: every rank has to call it, and to back-propagate through it."""
    total: Tensor = _Sum.apply(tensor, all_reduce_sum)
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, all_reduce_sum: AllReduceSum) -> Tensor:
        ctx.all_reduce_sum = all_reduce_sum
        return all_reduce_sum(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # What a rank gave stands in every rank's sum, so the gradients of all of them come back to it.
        return ctx.all_reduce_sum(gradients[0]), None
