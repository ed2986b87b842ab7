"""What PNG, JPEG and TIFF have in common: samples to [0, 1], alpha, orientation, and what Pillow decodes of them.

Alpha is composited over black: what a transparent pixel hides is no part of the picture, and black is what padding is.
Colour profiles and gamma are not applied.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images import window
from ad_jobs.images.libraries import foreign
from ad_jobs.images.lut import Grey, map_values
from ad_jobs.images.picture import Numbered, Pixels, Shown
from ad_jobs.images.policy import PixelPolicy

# The EXIF and TIFF tag.
ORIENTATION = 0x0112


class RasterPicture:
    """A PNG or JPEG; `samples` decodes it to [rows, columns, 1 to 4], as stored, and tells its orientation."""

    frames = 1

    def __init__(
        self, header: dict[str, object], bits: int, samples: Callable[[], tuple[npt.NDArray[Any], int]]
    ) -> None:
        self.header = header
        self.remarks: set[str] = set()
        self._bits = bits
        self._samples = samples

    def read(self, policy: PixelPolicy, only: int | None = None) -> Numbered:  # noqa: ARG002
        """As `Picture.read`; there is only frame 0."""
        yield Shown(0, self._show(*self._samples(), policy))

    def reduction(self, policy: PixelPolicy) -> int:  # noqa: ARG002
        """As `Picture.reduction`: none."""
        return 1

    def _show(self, samples: npt.NDArray[Any], orientation: int, policy: PixelPolicy) -> Pixels:
        full_scale = float(2**self._bits - 1)
        return oriented(shown(samples, (0.0, full_scale), policy, alpha_scale=full_scale), orientation)


def shown(
    samples: npt.NDArray[Any],
    full_range: tuple[float, float],
    policy: PixelPolicy,
    *,
    alpha_scale: float | None,
    inverted: bool = False,
    padding: npt.NDArray[np.bool_] | None = None,
) -> Pixels:
    """Samples [rows, columns, 1 to 4] as [rows, columns] or [rows, columns, 3] in [0, 1], 1 = white.

    One or two samples are grey, which the policy's window applies to; three or four are colour, by full scale.
    The second or fourth is alpha, `alpha_scale` being opaque; None says that it counts for nothing.
    `inverted`: the lowest grey is white.
    `padding` marks pixels that are no part of the picture: black, and out of a percentile window.
    """
    depth = samples.shape[2]
    if depth <= 2:

        def grey(values: Grey) -> Pixels:
            found = window.apply(values, policy.window, lambda own: window.spread(own, *full_range), padding)
            return ((1.0 - found) if inverted else found).astype(np.float32)

        stored = samples[..., 0]
        pixels = grey(stored.astype(np.float64)) if policy.window == "percentile" else map_values(stored, grey)
    else:
        low, high = full_range
        # Half a picture's time goes into making floats of colour: one pass where the range starts at 0.
        colour = samples[..., :3] if low == 0.0 else samples[..., :3].astype(np.float64) - low
        pixels = np.divide(colour, float(max(high - low, 1e-30)), dtype=np.float32)
        np.minimum(pixels, 1.0, out=pixels)
    if depth in (2, 4) and alpha_scale is not None:
        alpha = np.clip(samples[..., -1].astype(np.float32) / np.float32(alpha_scale), 0.0, 1.0)
        pixels = pixels * (alpha if pixels.ndim == 2 else alpha[..., None])
    if padding is not None:
        pixels[padding] = 0.0
    return pixels


def lies_across(orientation: int) -> bool:
    """Whether stored columns are displayed rows under an EXIF or TIFF orientation."""
    return orientation in (5, 6, 7, 8)


def oriented(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels as displayed, from the EXIF or TIFF orientation 1 to 8 (TIFF 6.0, section 8)."""
    if lies_across(orientation):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


@contextmanager
def pillow() -> Iterator[None]:
    """As `foreign`, telling a stream that ends too early from a damaged one."""
    with foreign("Pillow"):
        try:
            yield
        except OSError as error:
            # Pillow has one class for all that ails a stream; this text is its own and quotes no header.
            if "truncated" in str(error):
                raise ImageError(ErrorCode.TRUNCATED, "Pillow: the stream ends before its pixels do") from None
            raise


def eight_bits(image: ImageFile.ImageFile) -> npt.NDArray[np.uint8]:
    """A Pillow image of 8 bits or less as [rows, columns, 1 to 4]: grey, grey + alpha, RGB or RGBA."""
    transparent = "transparency" in image.info
    plain: Image.Image
    match image.mode:
        case "L" | "LA" | "RGB" | "RGBA" if not transparent:
            plain = image
        case "1" | "L":
            plain = image.convert("LA" if transparent else "L")
        case "RGB" | "P" | "PA":
            plain = image.convert("RGBA" if transparent or image.mode == "PA" else "RGB")
        case "CMYK":
            # Pillow has already undone Adobe's inversion.
            plain = image.convert("RGB")
        case other:
            raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, f"Pillow mode {other}")
    return with_channels(np.asarray(plain))


def with_channels(samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Samples [rows, columns] or [rows, columns, C] as [rows, columns, C]."""
    return samples[..., None] if samples.ndim == 2 else samples


def exif_orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation, 1 where none can be read: broken EXIF is no reason to lose the pixels."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except (ValueError, TypeError, KeyError, IndexError, OSError, SyntaxError, struct.error):
        return 1
