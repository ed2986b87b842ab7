"""Kinds of DICOM pixels that decoders get wrong, each in every form that it exists in, with the picture wanted.

The one list behind the tests of pixels, what DCMTK is asked, and docs/formats.md.
"""

from __future__ import annotations

from pixel_kinds.bits import bits
from pixel_kinds.colour import colours, palettes
from pixel_kinds.display import padding, windows
from pixel_kinds.frames import offset_tables
from pixel_kinds.header import contradictions
from pixel_kinds.kind import ALL, COMPRESSED, NATIVE, Kind
from pixel_kinds.luts import luts

__all__ = ["ALL", "CASES", "COMPRESSED", "IDS", "KINDS", "NATIVE", "Kind"]

KINDS = [*luts(), *windows(), *padding(), *bits(), *contradictions(), *colours(), *palettes(), *offset_tables()]
CASES = [(kind, form) for kind in KINDS for form in kind.forms]
IDS = [f"{kind.title}-{kind.variant}-{form}".replace(" ", "_") for kind, form in CASES]
