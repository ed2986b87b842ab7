"""Lookup tables: those that a DICOM header holds, and one made on the way where a function is asked for often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ad_jobs.errors import ErrorCode, ImageError

Grey = npt.NDArray[np.float64]


class Lut(NamedTuple):
    """A table of PS3.3 C.11.1.1 or C.11.2.1.1: the first value it maps, its entries, and its full scale."""

    first: int
    entries: npt.NDArray[Any]
    full_scale: int


def read_lut(item: Any) -> Lut:
    """The LUT of an item of a Modality or VOI LUT Sequence.

    Raises:
        ImageError: it has no entries.
    """
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    # PS3.3 C.11.1.1.1: 0 stands for 2^16.
    count = count or 65536
    data = item.LUTData
    if isinstance(data, bytes):
        # OW: one entry a 16-bit word, in the object's byte order; 8-bit entries may come one a byte.
        order = "<" if getattr(item, "is_little_endian", None) is not False else ">"
        entries = np.frombuffer(data, np.uint8 if len(data) < 2 * count else f"{order}u2")
    else:
        entries = np.atleast_1d(np.asarray(data)).astype(np.int64) & 0xFFFF
    entries = entries[:count]
    if not entries.size:
        raise ImageError(ErrorCode.CORRUPT, "a LUT without entries")
    # PS3.3 C.11.1.1.1: the third value is the bits of an entry. Writers are known to give 8 for wider entries.
    return Lut(first, entries, max(2**bits - 1, int(entries.max()), 1))


def lookup(values: Grey, lut: Lut) -> Grey:
    """Entries of the table; values beyond either of its ends take that end's entry.

    PS3.3 C.11.1.1.1 and C.11.2.1.1, the second value of LUT Descriptor.
    """
    # A rescale may leave fractions: the entry of the nearest stored value.
    index = np.clip(np.rint(values) - lut.first, 0, len(lut.entries) - 1).astype(np.int64)
    return lut.entries[index].astype(np.float64)


def map_values(
    stored: npt.NDArray[Any], function: Callable[[Grey], npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    """`function` of every stored value, which must treat each by itself: the same numbers as of all of them at once.

    Integers of up to 16 bits have fewer values than a picture has pixels: it is worked out once a value, and looked up.
    """
    if stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2 and stored.size:
        low, high = int(stored.min()), int(stored.max())
        if high - low < stored.size:
            table = function(np.arange(low, high + 1, dtype=np.float64))
            return table[stored if low == 0 else stored.astype(np.intp) - low]
    return function(stored.astype(np.float64))
