"""Lookup tables: those that a DICOM header holds, and one made on the way where a function is asked for often."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ad_jobs.images.attributes import is_implicit, numbers
from ad_jobs.images.remarks import Remark

Grey = npt.NDArray[np.float64]


class Lut(NamedTuple):
    """A table of PS3.3 C.11.1.1 or C.11.2.1.1: the first value it maps, its entries, and its full scale.

    `said_scale` is that of the bits in its descriptor, `full_scale` holds every entry as well.
    """

    first: int
    entries: npt.NDArray[Any]
    full_scale: int
    said_scale: int = 0xFFFF


def first_lut(
    items: Iterable[Any], values_range: tuple[float, float] | None, remarks: set[str], *, little: bool
) -> Lut | None:
    """The table of the first item of a Modality or VOI LUT Sequence that has one, as `read_lut`."""
    found = (read_lut(item, "LUT", values_range, remarks, little=little) for item in items)
    return next((lut for lut in found if lut is not None), None)


def read_lut(
    item: Any,
    name: str,
    values_range: tuple[float, float] | None,
    remarks: set[str],
    *,
    little: bool,
    expand: Callable[[list[int], int], list[int]] | None = None,
) -> Lut | None:
    """The table of an item's attributes `name` + Descriptor and `name` + Data; None if it has no entries.

    Args:
        item: a data set or an item of one.
        name: the attributes' common part.
        values_range: the lowest and highest value that the table is asked for; None if that is not known.
        remarks: what is assumed of a table that contradicts itself is added.
        little: the order of bytes in the object's words.
        expand: from segments to entries, for segmented data.
    """
    descriptor = numbers(item, f"{name.removeprefix('Segmented')}Descriptor")
    if len(descriptor) < 3 or None in descriptor:
        return None
    # PS3.3 C.11.1.1.1: 0 stands for 2^16. The three are words, whatever the sign of the value representation.
    count, said, bits = (int(number or 0) for number in descriptor[:3])
    count = (count & 0xFFFF) or 65536
    words = _words(item, f"{name}Data", little=little)
    # C.11.1.1.1: entries of 8 bits may lie two in a word, the first in its lower half. Writers are known to call them
    # entries of 16 bits; those of 9 to 15 bits are no bytes, and half of them are missing.
    packed = 2 * len(words) - count in (0, 1) and not 8 < bits < 16
    if expand is not None:
        single = words.view(np.uint8) if bits <= 8 else words
        entries = np.array(expand(single.tolist(), count), np.uint16)
    elif packed:
        entries, bits = words.view(np.uint8)[:count].astype(np.uint16), min(bits, 8)
    else:
        entries = words[:count]
    if not entries.size:
        return None
    if entries.size < count:
        remarks.add(Remark.LUT_SHORT)
    first = _first(said, count, values_range) if values_range is not None else said
    if first != said and not is_implicit(item):
        remarks.add(Remark.LUT_FIRST)
    # C.11.1.1.1: the third value is the bits of an entry. Writers are known to give 8 for wider entries.
    said_scale = max(2 ** min(bits, 16) - 1, 1)
    return Lut(first, entries, max(said_scale, int(entries.max())), said_scale)


def _words(item: Any, keyword: str, *, little: bool) -> npt.NDArray[np.uint16]:
    """LUT Data as words, whatever its value representation: US, SS or OW, rarely OB or UN."""
    if keyword not in item:
        return np.zeros(0, np.uint16)
    element = item[keyword]
    if not isinstance(element.value, bytes):
        many = np.atleast_1d(np.asarray([] if element.value is None else element.value, np.int64))
        return (many & 0xFFFF).astype(np.uint16)
    # OW has the object's order of bytes; PS3.5 6.2.2: unknown ones are little endian.
    order = ">" if element.VR == "OW" and not little else "<"
    return np.frombuffer(element.value[: len(element.value) // 2 * 2], f"{order}u2").astype(np.uint16)


def _first(said: int, count: int, values_range: tuple[float, float]) -> int:
    """The first value that a table maps, signed where the values are: C.11.1.1.1, C.11.2.1.1, C.7.6.3.1.5.

    Writers follow Pixel Representation instead of the rescaled values, or the value representation at hand: where the
    clause's reading of the word is a table that no value meets, what was said may be one that they do.
    """
    low, high = values_range
    word = said & 0xFFFF
    by_clause = word - 0x10000 if low < 0 and word & 0x8000 else word
    other = word if by_clause < 0 else said
    return next((first for first in (by_clause, other) if first <= high and first + count > low), by_clause)


def lookup(values: npt.NDArray[Any], lut: Lut) -> Grey:
    """Entries of the table; values beyond either of its ends take that end's entry.

    PS3.3 C.11.1.1.1 and C.11.2.1.1, the second value of LUT Descriptor.
    """
    return lut.entries[positions(values, lut)].astype(np.float64)


def positions(values: npt.NDArray[Any], lut: Lut) -> npt.NDArray[np.int64]:
    """Which entries of the table values take; one that is shorter than it says ends with its last entry."""
    # A rescale may leave fractions: the entry of the nearest stored value.
    whole = values.astype(np.int64) if values.dtype.kind in "iu" else np.rint(values)
    return np.clip(whole - lut.first, 0, len(lut.entries) - 1).astype(np.int64)


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
