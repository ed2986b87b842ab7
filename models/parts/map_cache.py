"""Maps of images that are the same in every epoch, kept by the images' positions as far as memory goes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class MapCache:
    """A row of every map for each position, in the host's memory.

    Args:
        mib: how much they may take together; what comes later is not kept.
    """

    def __init__(self, mib: int) -> None:
        self._rows: dict[int, tuple[Tensor, ...]] = {}
        self._bytes_left = mib * 2**20

    def find(self, positions: Sequence[int]) -> tuple[Tensor, ...] | None:
        """The maps of these images, or None unless all of them are kept."""
        if not positions or any(position not in self._rows for position in positions):
            return None
        rows = [self._rows[position] for position in positions]
        return tuple(torch.stack(layer) for layer in zip(*rows, strict=True))

    def keep(self, positions: Sequence[int], maps: Sequence[Tensor]) -> None:
        """Keep what there is room for."""
        layers = [layer.cpu() for layer in maps]
        row_bytes = sum(layer.shape[1:].numel() * layer.element_size() for layer in layers)
        for row, position in enumerate(positions):
            if position not in self._rows and self._bytes_left >= row_bytes:
                self._rows[position] = tuple(layer[row].clone() for layer in layers)
                self._bytes_left -= row_bytes
