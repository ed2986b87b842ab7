"""Which format the first bytes of an object are in, whatever its name."""

from __future__ import annotations

import struct
from typing import Literal

Format = Literal["dicom", "png", "jpeg", "tiff"]

_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM".split()
    + b"UC UI UL UN UR US UT UV".split()
)
# Those with 32-bit lengths, PS3.5 7.1.2.
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())


def sniff(head: bytes) -> Format | None:
    """The format that the first bytes of an object (256 or more) show; None if none that is known."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    # Before TIFF: PS3.10 7.1 lets a TIFF header stand in the preamble of a DICOM file.
    if has_preamble(head):
        return "dicom"
    # The latter two: BigTIFF.
    if head[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
        return "tiff"
    return "dicom" if is_headless(head) else None


def kind_of(head: bytes) -> str:
    """What the first bytes of an object (256 or more) are, in a manifest's word: a Format, jp2 or other."""
    # The signature box of JP2 (ISO/IEC 15444-1 I.5.1), the first two markers of a bare code stream (A.4.1, A.5.1).
    jpeg2000 = head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"))
    return sniff(head) or ("jp2" if jpeg2000 else "other")


def has_preamble(head: bytes) -> bool:
    """Whether the bytes open with a preamble and the DICM prefix (PS3.10 7.1)."""
    return head[128:132] == b"DICM"


def is_headless(head: bytes) -> bool:
    """Whether the bytes look like a DICOM data set without preamble, in any encoding."""
    return any(_walks(head, order, explicit) for order, explicit in (("<", True), ("<", False), (">", True)))


def _walks(head: bytes, order: str, explicit: bool) -> bool:
    """Whether two or more data elements (PS3.5 7.1) lie there from the first byte, in ascending order."""
    offset, last, walked = 0, -1, 0
    while walked < 3 and offset + 12 <= len(head):
        group, element = struct.unpack_from(f"{order}HH", head, offset)
        tag = group << 16 | element
        if tag <= last or (walked == 0 and group not in (0x0002, 0x0008)) or group > 0x7FE0:
            return False
        if explicit:
            vr = head[offset + 4 : offset + 6]
            if vr not in _VRS:
                return False
            long = vr in LONG_VRS
            length = struct.unpack_from(f"{order}L" if long else f"{order}H", head, offset + (8 if long else 6))[0]
            offset += 12 if long else 8
        else:
            length = struct.unpack_from(f"{order}L", head, offset + 4)[0]
            offset += 8
        walked += 1
        # A sequence: valid, but not to be walked through here.
        if length == 0xFFFFFFFF:
            return walked >= 2
        if length % 2 or length > 1 << 20:
            return False
        offset, last = offset + length, tag
    return walked >= 2
