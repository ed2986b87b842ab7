"""SSM's masks: 0 hides a pixel, 1 shows it; cells are hidden as a whole (Huang et al., IEEE TMM 2023).

Shape suffixes: B batch, C channels, H height, W width, K cell sizes, N masks of one cell size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Blocks a side, of the grid on which places are uncovered.
BLOCKS = 16


def disjoint_masks(cell: int, n: int, size_px: tuple[int, int], generator: torch.Generator) -> Tensor:
    """`n` masks [n, 1, H, W] whose hidden cells tile the image once."""
    rows, columns = (-(-side // cell) for side in size_px)
    owner = (torch.randperm(rows * columns, generator=generator) % n).view(rows, columns)
    return _masks_of(owner, n, cell, size_px)


def checkerboard_masks(cell: int, size_px: tuple[int, int]) -> Tensor:
    """A checkerboard and its complement, [2, 1, H, W]."""
    rows, columns = (torch.arange(-(-side // cell)) for side in size_px)
    return _masks_of((rows.unsqueeze(1) + columns) % 2, 2, cell, size_px)


def _masks_of(owner: Tensor, n: int, cell: int, size_px: tuple[int, int]) -> Tensor:
    pixels = owner.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[: size_px[0], : size_px[1]]
    return torch.stack([(pixels != mask).float() for mask in range(n)]).unsqueeze(1)


def training_masks(
    cells: tuple[int, ...], size_px: tuple[int, int], generator: torch.Generator, *, disjoint: bool, uncover: bool
) -> Tensor:
    """Masks [N, 1, H, W] of one drawn cell size: a checkerboard and its complement, or three disjoint ones.

    With `uncover`, in half of the draws some blocks are visible in all of them.
    """
    cell = cells[int(torch.randint(len(cells), (), generator=generator))]
    masks = disjoint_masks(cell, 3, size_px, generator) if disjoint else checkerboard_masks(cell, size_px)
    if uncover and float(torch.rand((), generator=generator)) < 0.5:
        share = 0.3 + 0.65 * float(torch.rand((), generator=generator))
        shown = (torch.rand(1, 1, BLOCKS, BLOCKS, generator=generator) < share).float()
        masks = torch.maximum(masks, F.interpolate(shown, size_px, mode="nearest"))
    return masks


def compose(images_BCHW: Tensor, painted_BKNCHW: Tensor, hidden_KN1HW: Tensor) -> Tensor:
    """Every pixel from the masks that hid it, [B, K, C, H, W]; where none did, the image itself."""
    times_K1HW = hidden_KN1HW.sum(1)
    mean_BKCHW = (painted_BKNCHW * hidden_KN1HW).sum(2) / times_K1HW.clamp_min(1)
    return torch.where(times_K1HW > 0, mean_BKCHW, images_BCHW.unsqueeze(1).to(mean_BKCHW))
