"""Segmented palettes to entries, PS3.3 C.7.9.2."""

from __future__ import annotations

from ad_jobs.errors import ErrorCode, ImageError

_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2


def expand(words: list[int], count: int) -> list[int]:
    """The `count` entries, or as many as there are, that segments of opcode, length and values stand for.

    Raises:
        ImageError: an opcode that there is not, or a segment that begins nowhere.
    """
    entries: list[int] = []
    offset = 0
    while offset + 2 <= len(words) and len(entries) < count:
        offset = _segment(words, offset, entries)
    return entries[:count]


def _segment(words: list[int], offset: int, entries: list[int]) -> int:
    """Add the entries of the segment at `offset`, and return where it ends."""
    opcode, length = words[offset : offset + 2]
    if opcode == _DISCRETE:
        entries += words[offset + 2 : offset + 2 + length]
        return offset + 2 + length
    # C.7.9.2.2: from the entry before, which is not repeated, to the value, in equal steps.
    if opcode == _LINEAR and entries and offset + 2 < len(words):
        start, end = entries[-1], words[offset + 2]
        entries += [round(start + (end - start) * step / length) for step in range(1, length + 1)]
        return offset + 3
    # C.7.9.2.3: so many segments from an offset, its lower half first; none of those is indirect.
    if opcode == _INDIRECT and offset + 4 <= len(words):
        place = words[offset + 2] | words[offset + 3] << 16
        for _ in range(length):
            if place + 2 > offset or words[place] == _INDIRECT:
                break
            place = _segment(words, place, entries)
        else:
            return offset + 4
    raise ImageError(ErrorCode.CORRUPT, "a segmented palette with a segment that is none")
