"""The one way from stored frames to what a detector takes; with numpy alone: who scores needs no decoder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# What 1.0 is in a frame's uint16 pixels.
FULL_SCALE = 65535


def to_input(pixels: npt.NDArray[np.uint16], channels: int) -> npt.NDArray[np.float32]:
    """Stored pixels [..., c, h, w] as a detector takes them: float32 [..., channels, h, w] in [0, 1].

    Grey is repeated to `channels`.

    Raises:
        ValueError: colour pixels for a grey detector: they were decoded under another model's policy.
    """
    stored = pixels.shape[-3]
    if stored not in (1, channels):
        raise ValueError(
            f"Pixels must have 1 or {channels} channels. Got: {stored}. Decode them with this model's own pixel policy."
        )
    scaled = np.divide(pixels, FULL_SCALE, dtype=np.float32)
    return scaled if stored == channels else np.repeat(scaled, channels, axis=-3)
