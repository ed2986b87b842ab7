"""Batch norm over the images of all workers.

Shape suffixes: B batch, C channels, H height, W width, R ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from models.runtime import Runtime

# The axes that a channel's statistics are taken over.
OVER = (0, 2, 3)


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's batch norm; with several workers, its statistics in training are those of the global batch.

    PyTorch's own SyncBatchNorm needs a GPU, and images on every rank.
    """

    # Lent where there are several workers.
    runtime: Runtime | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.runtime is None:
            return super().forward(input)
        self._check_input_dim(input)
        with torch.no_grad():
            count, mean_C, variance_C = _statistics(input, self.runtime)
            self._follow(count, mean_C, variance_C)
        out: Tensor = _Normalise.apply(
            input, self.weight, self.bias, mean_C, (variance_C + self.eps).rsqrt(), count, self.runtime
        )
        return out

    def _follow(self, count: Tensor, mean_C: Tensor, variance_C: Tensor) -> None:
        """Update the running statistics as PyTorch does: a mean over all batches where there is no momentum."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C, share)
        self.running_var.lerp_(variance_C * (count / (count - 1).clamp_min(1)), share)


def begin_statistics(network: nn.Module) -> None:
    """Forget all running statistics; a pass in training mode then gives them anew, as means over its batches."""
    for layer in network.modules():
        if isinstance(layer, BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None


def end_statistics(network: nn.Module) -> None:
    """Let running statistics follow the latest batches again."""
    for layer in network.modules():
        if isinstance(layer, BatchNorm2d):
            layer.momentum = 0.1


def _statistics(x_BCHW: Tensor, runtime: Runtime) -> tuple[Tensor, Tensor, Tensor]:
    """Count of values (a scalar), mean [C] and variance [C] over all ranks, from every rank's own.

    No square is summed raw.
    """
    channels = x_BCHW.shape[1]
    mean_C = variance_C = x_BCHW.new_zeros(channels)
    if x_BCHW.numel():
        variance_C, mean_C = torch.var_mean(x_BCHW, OVER, correction=0)
    own = torch.cat([x_BCHW.new_tensor([x_BCHW.numel() / channels]), mean_C, variance_C])
    ranks = runtime.gather(own.unsqueeze(0), runtime.world)
    count_R1, mean_RC, variance_RC = torch.split(ranks, [1, channels, channels], 1)
    count = count_R1.sum()
    mean_C = (count_R1 * mean_RC).sum(0) / count
    variance_C = (count_R1 * (variance_RC + (mean_RC - mean_C).square())).sum(0) / count
    return count, mean_C, variance_C


class _Normalise(torch.autograd.Function):
    """(x - mean) / deviation * weight + bias, with mean and deviation those of all ranks' x."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BCHW: Tensor,
        weight_C: Tensor | None,
        bias_C: Tensor | None,
        mean_C: Tensor,
        inverse_C: Tensor,
        count: Tensor,
        runtime: Runtime,
    ) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight_C, mean_C, inverse_C, count)
        ctx.all_reduce_sum = runtime.all_reduce_sum
        out = (x_BCHW - _wide(mean_C)) * _wide(inverse_C)
        return out if weight_C is None or bias_C is None else out * _wide(weight_C) + _wide(bias_C)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g_BCHW,) = gradients
        x_BCHW, weight_C, mean_C, inverse_C, count = ctx.saved_tensors
        normed = (x_BCHW - _wide(mean_C)) * _wide(inverse_C)
        own_2C = torch.stack([g_BCHW.sum(OVER), (g_BCHW * normed).sum(OVER)])
        # The statistics hang on the images of all ranks, so the gradients of all of them pass through.
        along_C, across_C = ctx.all_reduce_sum(own_2C) / count
        scale_C = inverse_C if weight_C is None else inverse_C * weight_C
        to_x = _wide(scale_C) * (g_BCHW - _wide(along_C) - normed * _wide(across_C))
        to_bias, to_weight = own_2C if weight_C is not None else (None, None)
        return to_x, to_weight, to_bias, None, None, None, None


def _wide(values_C: Tensor) -> Tensor:
    return values_C.view(1, -1, 1, 1)
