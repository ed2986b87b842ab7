"""What a transfer syntax says of an object's pixels (PS3.5 clause 8 and annex A, PS3.6 table A-1)."""

from __future__ import annotations

_ROOT = "1.2.840.10008.1.2"
# Native pixels, the deflated and the encapsulated uncompressed syntax among them: .1.99 deflates the data set.
_UNCOMPRESSED = frozenset(_ROOT + tail for tail in ("", ".1", ".1.98", ".1.99", ".2"))
# JPEG and all that came after it, RLE, deflated frames.
_COMPRESSED = (f"{_ROOT}.4.", f"{_ROOT}.5", f"{_ROOT}.8.")
# JPEG processes with a DCT, near-lossless JPEG-LS, video, and JPEG XL that holds such a JPEG.
_LOSSY = frozenset(f"{_ROOT}.4.{number}" for number in (*range(50, 57), *range(59, 65), 81, *range(100, 109), 111))
_LOSSY_FRAGMENTABLE = frozenset(f"{_ROOT}.4.{number}.1" for number in range(100, 107))
# JPEG 2000 and its second part, their JPIP forms, JPEG XL, HTJ2K.
_EITHER = frozenset(f"{_ROOT}.4.{number}" for number in (91, 93, 94, 95, 112, 203, 204, 205))


def is_compressed(syntax: str | None) -> bool | None:
    """Whether pixels in this transfer syntax (a UID) are compressed; None if it is not known."""
    if syntax is None or syntax in _UNCOMPRESSED:
        return None if syntax is None else False
    return True if syntax.startswith(_COMPRESSED) else None


def is_lossy(syntax: str | None, said: str | None) -> bool | None:
    """Whether an image has ever undergone lossy compression.

    Args:
        syntax: its transfer syntax, a UID.
        said: its Lossy Image Compression (0028,2110), 00 or 01 (PS3.3 C.7.6.1.1.5).

    Returns:
        True if either says so, else False; None where neither can tell: no attribute, and a transfer syntax that may be
        lossy or not, or that is not known.
    """
    if said == "01" or syntax in _LOSSY or syntax in _LOSSY_FRAGMENTABLE:
        return True
    if said == "00":
        return False
    return None if syntax in _EITHER or is_compressed(syntax) is None else False
