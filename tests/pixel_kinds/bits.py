"""Cells, bits and signs."""

from __future__ import annotations

import dicomkit as kit
from pydicom.pixels.utils import pack_bits

from pixel_kinds.kind import COMPRESSED, JPEG_FAMILY, NATIVE, PRECISE, RAMP, SHOWN, Kind, changed, having, of


def bits() -> list[Kind]:
    above, overlay = "Bits above Bits Stored are masked", RAMP | 0xA000
    lower = kit.ramp()
    eight = having(BitsAllocated=8, BitsStored=8, HighBit=7)
    refused = "A code stream of more bits than the header has is refused"
    return [
        Kind(above, "native and RLE", "PS3.5 8.1.1", of(overlay, 12), SHOWN, forms=(*NATIVE, "rle")),
        Kind(
            above,
            "code streams",
            "PS3.5 8.1.1",
            of(overlay, 12, precision=16),
            SHOWN,
            forms=JPEG_FAMILY,
            remark="high_bits_masked",
        ),
        Kind(
            above,
            "signed",
            "PS3.5 8.1.1",
            of((RAMP.astype("<i2") - 2048) & 0xFFF | 0x5000, 12),
            SHOWN,
            forms=(*NATIVE, "rle"),
        ),
        Kind(
            "An older High Bit: the value lies higher in its cell",
            "",
            "PS3.5 8.1.1, older editions",
            of(RAMP << 4 | 5, 12, precision=16, HighBit=15),
            SHOWN,
        ),
        *(
            Kind(
                "2 to 7 bits",
                f"{bits}",
                "PS3.5 8.2.1, 8.2.3",
                of(kit.ramp(2**bits, "u1"), bits),
                kit.ramp(2**bits) / (2**bits - 1),
            )
            for bits in range(2, 8)
        ),
        Kind(
            "2 to 7 bits",
            "6, in a code stream of 8",
            "PS3.5 8.2.1",
            of(kit.ramp(64, "u1"), 6, precision=8),
            kit.ramp(64) / 63,
            forms=PRECISE,
        ),
        Kind("2 to 7 bits", "6, signed", "PS3.5 8.2.1", of((kit.ramp(64) - 32.0).astype("i1"), 6), kit.ramp(64) / 63),
        Kind(
            refused,
            "12 over 8 allocated",
            "PS3.5 8.1.1",
            changed(RAMP, eight, 12),
            "BitsAllocated",
            forms=COMPRESSED,
            differs="DCMTK wraps",
        ),
        Kind(
            refused,
            "12 over 8 stored",
            "PS3.5 8.1.1",
            changed(RAMP, having(BitsStored=8, HighBit=7), 12),
            "BitsStored",
            forms=PRECISE,
            differs="DCMTK wraps",
        ),
        Kind(
            "1 bit, side by side",
            "",
            "PS3.5 8.1.1, annex D",
            changed(
                kit.ramp(2, "u1"),
                having(BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=pack_bits(kit.ramp(2, "u1").ravel())),
            ),
            kit.ramp(2) / 1.0,
            forms=("explicit", "implicit", "deflated"),
        ),
        Kind(
            "8 bits in words, in big endian too",
            "",
            "PS3.5 8.1.1, 7.3",
            changed(lower.astype("u1"), lambda ds: setattr(ds["PixelData"], "VR", "OW")),
            lower / 255,
            forms=NATIVE,
        ),
    ]
