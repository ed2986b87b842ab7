"""What tests of SSM and of its kin look at."""

from __future__ import annotations

import torch
from torch import Tensor

from models.parts.masks import checkerboard_masks
from models.ssm import SSM


def hidden_error(detector: SSM, images: Tensor) -> float:
    """Mean squared error where cells of 8 pixels were hidden, each pixel once."""
    height, width = images.shape[-2:]
    with torch.no_grad():
        found = []
        for mask in checkerboard_masks(8, (height, width)):
            painted, _ = detector.paint(detector.guess(images, mask), mask.expand(len(images), 1, -1, -1))
            found.append(((painted - images).square() * (1 - mask)).mean())
        return 2 * float(torch.stack(found).mean())
