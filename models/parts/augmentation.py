"""Images seen anew: turned and flipped, zoomed, shifted, and given another contrast, each in a way of its own.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.parts.stn import warp

# By up to these shares of the size: larger or smaller, and sideways.
ZOOM, SHIFT = 0.15, 0.08
# Of the logarithms of a gain and of a gamma.
CONTRAST = 0.4


def ways(count: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """Whether to flip, and by how many right angles to turn, each of `count` images."""
    drawn = []
    for _ in range(count):
        flip, turns = (int(torch.randint(high, (), generator=generator)) for high in (2, 4))
        drawn.append((flip, turns))
    return drawn


def turned(images_BCHW: Tensor, drawn: Sequence[tuple[int, int]]) -> Tensor:
    """Each image flipped and turned in its own way, as far as its shape allows."""
    square = images_BCHW.shape[2] == images_BCHW.shape[3]
    found = torch.empty_like(images_BCHW)
    for place, image, (flip, turns) in zip(found, images_BCHW, drawn, strict=True):
        flipped = image.flip(2) if flip else image
        place.copy_(flipped.rot90(turns if square else 2 * (turns // 2), (1, 2)))
    return found


def jittered(
    images_BCHW: Tensor, drawn_B5: Tensor, *, zoom: float = ZOOM, shift: float = SHIFT, contrast: float = CONTRAST
) -> Tensor:
    """Images in [0, 1], each zoomed, shifted, and given another gain and gamma.

    Args:
        images_BCHW: in [0, 1].
        drawn_B5: how far to go, in [-1, 1].
        zoom: by up to this share.
        shift: by up to this share of the sides.
        contrast: of the logarithms of gain and gamma.
    """
    transform_B33 = torch.eye(3).to(drawn_B5).repeat(len(drawn_B5), 1, 1)
    transform_B33[:, 0, 0] = transform_B33[:, 1, 1] = (1 + zoom) ** drawn_B5[:, 0]
    transform_B33[:, :2, 2] = 2 * shift * drawn_B5[:, 1:3]
    moved = warp(images_BCHW, transform_B33, padding="border")
    gain_B111, gamma_B111 = (contrast * drawn_B5[:, 3:]).exp()[:, :, None, None, None].unbind(1)
    return (gain_B111 * moved.clamp(0, 1) ** gamma_B111).clamp(0, 1)


def augmented(
    images_BCHW: Tensor,
    generator: torch.Generator,
    *,
    jitter: bool = True,
    rows: Sequence[int] | None = None,
    of: int = 0,
) -> Tensor:
    """Images in [0, 1], each turned, and with `jitter` jittered, in a way of its own.

    Args:
        images_BCHW: in [0, 1].
        generator: what all is drawn from.
        jitter: also zoom, shift, and change contrasts.
        rows: which of the images that are drawn for these are.
        of: how many images are drawn for; as many as there are by default.
    """
    rows = range(len(images_BCHW)) if rows is None else rows
    drawn = ways(max(of, len(rows)), generator)
    drawn_B5 = 2 * torch.rand(len(drawn), 5, generator=generator) - 1
    found = turned(images_BCHW, [drawn[row] for row in rows])
    return jittered(found, drawn_B5[list(rows)].to(images_BCHW)) if jitter else found
