"""A memory of normal patches: a sample of bounded size, its coreset, and distances to it.

Shape suffixes: B batch, P positions, D dimensions, N candidates, K items.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.runtime import Runtime

# Dimensions in which a coreset is sought: a random projection keeps distances (Johnson and Lindenstrauss).
PROJECTED = 64
# Items compared at once, so that memory grows with an image's positions alone.
CHUNK = 1024


class PatchSample:
    """A uniform sample of the patches of all images, the same whatever the batches and the number of workers.

    Every patch has a random key, by the seed and the image's position in the set alone; those with the lowest stay.
    """

    def __init__(self, size: int, like_KD: Tensor, runtime: Runtime) -> None:
        """At most `size` patches, of the dimensions and the type of `like_KD`."""
        self.size, self.runtime = size, runtime
        self.patches = like_KD.new_zeros(0, like_KD.shape[1])
        self.keys = torch.zeros(0, dtype=torch.float64)

    def add(self, patches_BPD: Tensor, positions_B: Tensor) -> None:
        """Count in a batch's patches."""
        if not len(patches_BPD):
            return
        keys = [self._keys(int(position), patches_BPD.shape[1]) for position in positions_B]
        self.keys = torch.cat([self.keys, *keys])
        self.patches = torch.cat([self.patches.to(patches_BPD), patches_BPD.flatten(0, 1)])
        self._keep(self.keys.argsort()[: self.size])

    def all_reduce(self) -> None:
        """Make one sample of all workers' samples; afterwards every worker holds it."""
        keys = torch.full((self.runtime.world, self.size), float("inf"), dtype=torch.float64)
        keys[torch.arange(self.runtime.world) != self.runtime.rank] = 0.0
        keys[self.runtime.rank, : len(self.keys)] = self.keys
        keys = self.runtime.all_reduce_sum(keys).flatten()
        order = keys.argsort()[: int(keys.isfinite().sum().clamp_max(self.size))]
        # Of the whole's rows those that lie here, and where.
        first = self.runtime.rank * self.size
        mine = (order >= first) & (order < first + self.size)
        whole = self.patches.new_zeros(len(order), self.patches.shape[1])
        whole[mine] = self.patches[order[mine] - first]
        self.keys, self.patches = keys[order], self.runtime.all_reduce_sum(whole)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, for a checkpoint."""
        return {"patches": self.patches, "keys": self.keys}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.patches, self.keys = state["patches"], state["keys"]

    def _keys(self, position: int, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.runtime.seed * 1_000_003 + position)
        return torch.rand(count, generator=generator, dtype=torch.float64)

    def _keep(self, rows: Tensor) -> None:
        self.keys, self.patches = self.keys[rows], self.patches[rows.to(self.patches.device)]


def coreset(patches_ND: Tensor, items: int, seed: int) -> Tensor:
    """Up to `items` rows that lie close to all others, ascending: greedy k-center (PatchCore, Algorithm 1).

    It begins with the first row; each next one lies furthest from those that are there.
    Fewer rows come back where the others are copies.
    """
    # Drawn where every device draws the same.
    matrix = torch.randn(patches_ND.shape[1], PROJECTED, generator=torch.Generator().manual_seed(seed))
    points = patches_ND @ matrix.to(patches_ND) / PROJECTED**0.5
    chosen = [0]
    away = (points - points[0]).square().sum(1)
    while len(chosen) < min(items, len(points)):
        furthest = int(away.argmax())
        if not float(away[furthest]) > 0:
            break
        chosen.append(furthest)
        away = torch.minimum(away, (points - points[furthest]).square().sum(1))
    return torch.tensor(sorted(chosen), device=patches_ND.device)


class MemoryBank(nn.Module):
    """K items of D dimensions, and half of the squared distance to the nearest: of unit vectors 1 - cosine."""

    items: Tensor

    def __init__(self, items: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("items", torch.zeros(items, dims))

    def fit(self, patches_ND: Tensor, seed: int) -> None:
        """Keep a coreset of the patches; where they are fewer than the items, some stand there again."""
        rows = coreset(patches_ND, len(self.items), seed)
        self.items.copy_(patches_ND[rows[torch.arange(len(self.items), device=rows.device) % len(rows)]])

    def forward(self, patches_BPD: Tensor) -> Tensor:
        """Half of the squared distance of each patch to the nearest item, [B, P]."""
        best, nearest = self._nearest(patches_BPD, 0)
        for start in range(CHUNK, len(self.items), CHUNK):
            least, found = self._nearest(patches_BPD, start)
            closer = least < best
            best, nearest = torch.where(closer, least, best), torch.where(closer, found, nearest)
        # Not from the product, whose rounding small distances would drown in.
        return 0.5 * (patches_BPD - self.items[nearest]).square().sum(2)

    def _nearest(self, patches_BPD: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Of CHUNK items the nearest: half of its squared distance, but for the patch's own part, and its row."""
        items_kD = self.items[start : start + CHUNK]
        least, found = (0.5 * items_kD.square().sum(1) - patches_BPD @ items_kD.T).min(2)
        return least, found + start
