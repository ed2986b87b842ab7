"""How stored pixels become a detector's input, and how much of an object a decoder may take on."""

from __future__ import annotations

from math import isfinite
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Window = Literal["dicom", "percentile"] | tuple[float, float]

# The share of pixels below and above the window of `window: percentile`: one pixel in two hundred at either
# end may be a metal implant, a burned-in marker or a dead detector element without moving the grey scale of
# the rest.
PERCENTILES = (0.5, 99.5)


class PixelPolicy(BaseModel):
    """The pixel policy of a model: a scan applies the one the model was fitted with, and records it.

    `window` concerns greyscale values. `dicom` takes what the object says (VOI LUT, else its first window,
    else the full range of its stored bits); `percentile` spreads the values between the 0.5th and 99.5th
    percentile of the frame; `[low, high]` is fixed, in modality units (Hounsfield units for CT; stored values
    for ordinary pictures). Colour frames are never windowed. `resize: pad` keeps the aspect and fills with 0
    (black).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: Literal[1, 3]
    height_px: int = Field(gt=0, le=16384)
    width_px: int = Field(gt=0, le=16384)
    window: Window = "dicom"
    resize: Literal["stretch", "pad"] = "stretch"
    interpolation: Literal["area", "bilinear"] = "area"

    @model_validator(mode="after")
    def _window_has_width(self) -> Self:
        if isinstance(self.window, tuple):
            low, high = self.window
            if not (isfinite(low) and isfinite(high) and low < high):
                raise ValueError(
                    f"A fixed window must be two finite numbers, low < high. "
                    f"Got: [{low:g}, {high:g}]. Swap or widen them."
                )
        return self


class Limits(BaseModel):
    """What one object may cost; checked from its header before anything of its size is allocated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(default=1 << 30, gt=0)  # of the object as stored
    max_pixels: int = Field(default=100_000_000, gt=0)  # rows x columns of one frame
    max_frames: int = Field(default=10_000, gt=0)
    timeout_s: float = Field(default=60.0, gt=0)  # wall clock for one object
