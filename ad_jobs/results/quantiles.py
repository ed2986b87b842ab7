"""Exact quantiles of more float32 numbers than memory holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
# Halves of the 32 bits of a number: one pass counts by the upper, a second by the lower.
_HALF_BITS = 16
_HALF = 1 << _HALF_BITS


def quantiles(chunks: Callable[[], Iterable[Floats]], shares: Sequence[float]) -> list[float] | None:
    """The quantiles at these shares in [0, 1], linear between neighbours as `np.quantile`; None of no numbers.

    Two passes over the numbers, which must be finite, and 256 KiB for each share.
    """
    upper = np.zeros(_HALF, np.int64)
    for chunk in chunks():
        upper += np.bincount(_ordered(chunk) >> _HALF_BITS, minlength=_HALF)
    count = int(upper.sum())
    if not count:
        return None
    places = [share * (count - 1) for share in shares]
    ranks = sorted({rank for place in places for rank in (int(np.floor(place)), int(np.ceil(place)))})
    found = dict(zip(ranks, _of_rank(chunks, upper, ranks), strict=True))
    values = []
    for place in places:
        low, high = found[int(np.floor(place))], found[int(np.ceil(place))]
        values.append(low + (high - low) * (place - int(np.floor(place))))
    return values


def _of_rank(chunks: Callable[[], Iterable[Floats]], upper: NDArray[np.int64], ranks: list[int]) -> list[float]:
    """The numbers that have these ranks among all, 0 the lowest, from the counts of their upper halves."""
    ends = np.cumsum(upper)
    halves = np.searchsorted(ends, ranks, side="right")
    lower = {int(half): np.zeros(_HALF, np.int64) for half in halves}
    for chunk in chunks():
        ordered = _ordered(chunk)
        of_each = ordered >> _HALF_BITS
        for half, counts in lower.items():
            counts += np.bincount(ordered[of_each == half] & (_HALF - 1), minlength=_HALF)
    found = []
    for rank, half in zip(ranks, halves.tolist(), strict=True):
        within = rank - int(ends[half] - upper[half])
        low = int(np.searchsorted(np.cumsum(lower[half]), within, side="right"))
        found.append(_number(half << _HALF_BITS | low))
    return found


def _ordered(numbers: Floats) -> NDArray[np.int64]:
    """Whole numbers in the order of the floats, from their bits (IEEE 754): a negative one's bits count backwards."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.int64)


def _number(ordered: int) -> float:
    bits = ordered ^ (1 << 31) if ordered >> 31 else ordered ^ 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))
