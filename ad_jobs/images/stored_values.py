"""Cells to stored values, PS3.5 8.1.1: Bits Stored of them, up to High Bit, are the value; the others are not.

What stands beside the value of a cell may be anything: old overlays (PS3.3 C.9.2, retired form) lie there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.pixel_module import PixelModule
from ad_jobs.images.remarks import Remark

Array = npt.NDArray[Any]

# What a lossy encoder may add to values at either end of the range, as a share of it.
OVERSHOOT = 0.25


def from_cells(cells: Array, module: PixelModule) -> Array:
    """Stored values of cells of Bits Allocated, an unsigned array."""
    shift = module.high + 1 - module.stored
    if shift:
        cells = cells >> shift
    return _lowest_bits(cells, module.stored, signed=module.signed)


def from_code_stream(
    values: Array, bits: int, index: int, module: PixelModule, remarks: set[str], lossy: bool
) -> Array:
    """Stored values of samples of `bits` that a code stream of JPEG's family gave for frame `index`.

    Raises:
        ImageError: they do not fit into Bits Stored, and what does not fit is neither an overlay nor a lossy encoder's
            overshoot.
    """
    if bits > module.allocated:
        detail = f"BitsAllocated is {module.allocated}, the code stream of frame {index} has {bits} bits"
        raise ImageError(ErrorCode.CORRUPT, detail)
    # The value lies up to High Bit: in a code stream that reaches so far.
    above = bits
    shift = module.high + 1 - module.stored
    if shift and bits > module.high:
        values = values >> shift
        above -= shift
    if module.signed and values.dtype.kind == "u":
        # The code stream of a signed picture holds its bits: fewer than Bits Stored have no sign among them.
        values = _lowest_bits(_as_wide_as(values, module.stored), max(above, module.stored), signed=True)
    low, high = module.stored_range
    # Most code streams have exactly Bits Stored: nothing can lie beyond.
    if above <= module.stored or (values.max() <= high and values.min() >= low):
        return values
    slack = int(OVERSHOOT * (high - low)) if lossy else 0
    if module.signed and values.min() >= 0:
        # No sign reaches above Bits Stored: it is the highest of these, and nothing of the value is above.
        if values.max() <= high - low + slack:
            return _lowest_bits(values.view(f"u{values.dtype.itemsize}"), module.stored, signed=True)
    elif values.max() <= high + slack and values.min() >= low - slack:
        return np.clip(values, low, high)
    if bits < module.allocated:
        detail = f"BitsStored is {module.stored}, the code stream of frame {index} has {bits} bits"
        raise ImageError(ErrorCode.CORRUPT, detail)
    # Whole cells were encoded.
    remarks.add(Remark.HIGH_BITS)
    return _lowest_bits(values.view(f"u{values.dtype.itemsize}"), module.stored, signed=module.signed)


def _as_wide_as(values: Array, bits: int) -> Array:
    return values if values.dtype.itemsize * 8 >= bits else values.astype(f"u{2 if bits <= 16 else 4}")


def _lowest_bits(cells: Array, bits: int, *, signed: bool) -> Array:
    """The lowest `bits` of unsigned cells, in two's complement if `signed`."""
    width = cells.dtype.itemsize * 8
    if bits < width:
        cells = cells & cells.dtype.type((1 << bits) - 1)
    if not signed:
        return cells
    values = cells.view(f"i{cells.dtype.itemsize}")
    if bits == width:
        return values
    sign = values.dtype.type(1 << (bits - 1))
    return (values ^ sign) - sign
