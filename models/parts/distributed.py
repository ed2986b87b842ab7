"""The workers of a fit as one group of torch.distributed: what every one of them lends its learner."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.detector import Runtime
from models.parts.batch_norm import BatchNorm2d


def group_runtime(device: torch.device, seed: int) -> Runtime:
    """The runtime of this rank in the process group that was set up; that of a single process where there is none."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Runtime(device=device, seed=seed)

    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL works on the current one

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
