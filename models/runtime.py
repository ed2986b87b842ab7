"""What the worker lends a learner: its device, its place among the workers, and sums over all of them.

A learner owns losses and optimizers, and knows neither Ray nor a process group: several workers meet here alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.parts.batch_norm import BatchNorm2d

# A new tensor, the same on every rank: the sum of all ranks' tensors of this shape. The argument stays as it is.
AllReduceSum = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Runtime:
    """What the worker lends a learner. The defaults are a single process on the CPU.

    Row i of a global batch lies on rank i mod `world`.
    On every rank a learner computes the loss of the global batch, by `mean` and `gather`, and back-propagates it.
    What `wrap` gives then has the gradients, and in training the batch statistics, of the global batch.
    So each rank takes every step, with however few images.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    # DistributedDataParallel in a group.
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network
    all_reduce_sum: AllReduceSum = lambda tensor: tensor
    rank: int = 0
    world: int = 1
    seed: int = 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the values of all ranks, a scalar that gradients pass through; images are the first axis."""
        if self.world == 1:
            return values.mean()
        own = torch.stack([values.sum(), values.new_tensor(float(values.numel()))])
        total, count = self.sum(own)
        return total / count

    def gather(self, rows: Tensor, total: int) -> Tensor:
        """All `total` rows of the global batch in its order, from every rank's own; gradients pass through."""
        if self.world == 1:
            return rows
        spread = rows.new_zeros(total, *rows.shape[1:])
        spread[self.mine(total)] = rows
        return self.sum(spread)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' tensors; every rank has to call it, and to back-propagate through it."""
        summed: Tensor = _SumOverRanks.apply(tensor, self.all_reduce_sum)
        return summed

    def mine(self, total: int) -> slice:
        """Which of the global batch's `total` rows lie on this rank."""
        return slice(self.rank, total, self.world)


def group_runtime(device: torch.device, seed: int) -> Runtime:
    """The runtime of this rank in the process group that was set up; that of a single process where there is none."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Runtime(device=device, seed=seed)

    if device.type == "cuda":
        # NCCL works on the current one.
        torch.cuda.set_device(device)

    def all_reduce_sum(tensor: Tensor) -> Tensor:
        # On the learner's device whatever it came from, as NCCL wants; dense, as ranks must agree on the order.
        total = tensor.detach().to(device).clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def wrap(network: nn.Module) -> nn.Module:
        network.to(device)
        for layer in network.modules():
            if isinstance(layer, BatchNorm2d):
                layer.runtime = runtime
        return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)

    runtime = Runtime(
        device=device,
        wrap=wrap,
        all_reduce_sum=all_reduce_sum,
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        seed=seed,
    )
    return runtime


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, all_reduce_sum: AllReduceSum) -> Tensor:
        ctx.all_reduce_sum = all_reduce_sum
        return all_reduce_sum(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # What a rank gave stands in every rank's sum, so the gradients of all of them come back to it.
        return ctx.all_reduce_sum(gradients[0]), None
