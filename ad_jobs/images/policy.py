"""How stored pixels become a detector's input, and how much of an object a decoder may take on."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite
from operator import lt
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    WrapValidator,
    model_serializer,
    model_validator,
)
from pydantic import ValidatorFunctionWrapHandler as Parse
from pydantic_core import PydanticCustomError

Window = Literal["dicom", "percentile"] | tuple[float, float]

# The share of pixels below and above the window of `window: percentile`.
# One pixel in two hundred at either end may be a metal implant, a burned-in marker or a dead detector element without
# moving the grey scale of the rest.
PERCENTILES = (0.5, 99.5)
MAX_SIDE_PX = 16384
# From the least value of a frame to its greatest: what a viewer asks for, and no model can.
WHOLE_RANGE: tuple[float, float] = (-inf, inf)


def _must_be(rule: str, holds: Callable[[float], bool]) -> AfterValidator:
    """A validator of a number whose message is the rule in words; the field's name stands beside it in the error."""

    def check(value: float) -> float:
        if not holds(value):
            raise PydanticCustomError("rule", "must be {rule}", {"rule": rule})
        return value

    return AfterValidator(check)


def has_width(low: float, high: float) -> bool:
    """Whether a fixed window is one: two finite numbers, low < high."""
    return isfinite(low) and isfinite(high) and low < high


def _check_window(value: Any, parse: Parse) -> Window:
    """The window that `value` stands for; one message for whatever is none."""
    try:
        # Of JSON: what is strict takes no list for a pair.
        window: Window = parse(tuple(value) if isinstance(value, list) else value)
    except ValidationError:
        window = (0.0, 0.0)
    if isinstance(window, tuple) and not has_width(*window):
        raise PydanticCustomError("window", "must be dicom, percentile, or two finite numbers, low < high")
    return window


_Side = Annotated[int, _must_be(f"from 1 to {MAX_SIDE_PX} pixels", lambda side_px: 1 <= side_px <= MAX_SIDE_PX)]
_Count = Annotated[int, _must_be("1 or more", lambda count: count >= 1)]
_Seconds = Annotated[float, _must_be("a finite number above 0", lambda seconds: seconds > 0 and isfinite(seconds))]


class Tiles(BaseModel):
    """How images are cut into tiles of the detector's input size, instead of being resized to it.

    Neighbours overlap by at least `overlap_px`.
    `size_px` is the height and width that an image is resized to before it is cut; None: it keeps its own resolution.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    overlap_px: Annotated[int, _must_be("0 or more", lambda overlap_px: overlap_px >= 0)]
    size_px: tuple[_Side, _Side] | None = None


class PixelPolicy(BaseModel):
    """The pixel policy of a model: a scan applies the one the model was fitted with, and records it.

    `height_px` and `width_px` are the detector's input: an image is resized to them, or with `tiles` cut into them.

    `window` concerns greyscale values.
    `dicom` takes what the object says (VOI LUT, else its first window, else the full range of its stored bits).
    `percentile` spreads the values between the 0.5th and 99.5th percentile of the frame.
    `[low, high]` is fixed, in modality units (Hounsfield units for CT; stored values for ordinary pictures).
    Colour frames are never windowed.
    `resize: pad` keeps the aspect and fills with 0 (black).
    `decode: reduced` takes a frame at a half, a quarter, ... of its size where its format can: see `reduction`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: Literal[1, 3]
    height_px: _Side
    width_px: _Side
    window: Annotated[Window, WrapValidator(_check_window)] = "dicom"
    resize: Literal["stretch", "pad"] = "stretch"
    interpolation: Literal["area", "bilinear"] = "area"
    decode: Literal["full", "reduced"] = "full"
    tiles: Tiles | None = None

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of the detector's input, which is a tile where there are tiles."""
        return self.height_px, self.width_px

    @model_validator(mode="after")
    def _tiles_fit(self) -> Self:
        if self.tiles is None:
            return self
        if 2 * self.tiles.overlap_px > min(self.size_px):
            raise PydanticCustomError("overlap", "the overlap must be at most half of a tile's smaller side")
        if self.tiles.size_px is not None and any(map(lt, self.tiles.size_px, self.size_px)):
            raise PydanticCustomError("tile", "a tile must be no larger than the images it is cut from")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A record without them means full and no tiles, as those do that were written before there was a choice: ids
        # follow from it.
        values: dict[str, Any] = handler(self)
        if self.decode == "full":
            values.pop("decode", None)
        if self.tiles is None:
            values.pop("tiles", None)
        return values


class Limits(BaseModel):
    """What one object may cost; checked before anything of its size is allocated.

    `max_bytes` is of the object as stored, `max_pixels` of one frame (rows x columns).
    `max_input_pixels` is of all of its frames at the input's size, or as they are cut into tiles, under all policies
    together.
    `max_memory_bytes` is what its decoding may take beside the decoder itself, its own bytes included.
    `timeout_s` is wall clock for one object.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: _Count = 1 << 30
    max_pixels: _Count = 100_000_000
    max_frames: _Count = 10_000
    max_input_pixels: _Count = 1 << 27
    max_memory_bytes: _Count = 4 << 30
    timeout_s: _Seconds = 60.0
