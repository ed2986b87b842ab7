"""DICOM pixel data before it is decoded: whether all of it is there, at the size that the header announces.

And the one family of code streams that is decoded here, JPEG of twelve bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.attributes import integer
from ad_jobs.images.codestream import codestream_size
from ad_jobs.images.picture import check_size
from ad_jobs.images.policy import Limits

_FLOAT, _DOUBLE_FLOAT, _INTEGER = 0x7FE00008, 0x7FE00009, 0x7FE00010
PIXEL_TAGS = (_FLOAT, _DOUBLE_FLOAT, _INTEGER)

# JPEG processes 2 & 4, 6 & 8 and 10 & 12: twelve bits, which libjpeg-turbo reads and pydicom's plug-ins do not.
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
TWELVE_BIT_JPEG = frozenset({JPEG_EXTENDED, "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55"})


def check_length(ds: Any, values: int, photometric: object) -> None:
    """Raise ImageError if native pixel data has fewer bytes than so many `values` take (PS3.5 8.1.1, 8.2)."""
    tag = next(tag for tag in PIXEL_TAGS if tag in ds)
    bits = {_FLOAT: 32, _DOUBLE_FLOAT: 64}.get(tag) or integer(ds, "BitsAllocated")
    needed_bits = values * bits
    # PS3.3 C.7.6.3.1.2: two pixels share their chrominance.
    if photometric == "YBR_FULL_422":
        needed_bits = needed_bits // 3 * 2
    needed, found = (needed_bits + 7) // 8, len(ds[tag].value or b"")
    if found < needed:
        raise ImageError(ErrorCode.TRUNCATED, f"{found} of {needed} bytes of pixel data")


def check_codestreams(codes: Iterable[bytes], size: tuple[int, int], frames: int, limits: Limits) -> None:
    """Raise ImageError if a frame is missing, cut short, or announces another size than the header.

    The size also guards the decoders: they allocate what the code stream says, not what the header says.
    """
    found = 0
    for code in codes:
        announced = codestream_size(code)
        if announced is not None:
            check_size(*announced, limits)
            if announced != size:
                detail = f"frame {found} is {announced[0]} x {announced[1]}, not as announced"
                raise ImageError(ErrorCode.CORRUPT, detail)
            # End of image; inside a code stream the two bytes cannot occur (they are stuffed).
            if b"\xff\xd9" not in code:
                raise ImageError(ErrorCode.TRUNCATED, f"frame {found} has no end marker")
        found += 1
        if found == frames:
            return
    raise ImageError(ErrorCode.TRUNCATED, f"{found} of {frames} frames")


def decode_twelve_bit_jpeg(code: bytes, bits: int, *, signed: bool) -> npt.NDArray[Any]:
    """The stored values [rows, columns] of a code stream of TWELVE_BIT_JPEG."""
    stored: npt.NDArray[Any] = imagecodecs.jpeg8_decode(code)
    # Two's complement of Bits Stored, PS3.5 8.1.1.
    if signed:
        sign = 1 << (bits - 1)
        stored = (stored.astype(np.int32) ^ sign) - sign
    return stored
