"""Frames and fragments of encapsulated pixel data."""

from __future__ import annotations

import struct
from collections.abc import Callable

import dicomkit as kit
import numpy as np
from pydicom.encaps import encapsulate

from pixel_kinds.kind import COMPRESSED, FRAMES, JPEG_FAMILY, Kind


def offset_tables() -> list[Kind]:
    title = "An offset table that is wrong: frames are told by their markers"

    def with_table(offsets: Callable[[list[int]], list[int]], *, extended: bool = False) -> Callable[[str], bytes]:
        def build(form: str) -> bytes:
            ds = kit.dataset(FRAMES, bits=12)
            codes = [code + bytes(len(code) % 2) for code in kit.codes(ds, form)]
            right = [0, *np.cumsum([len(code) + 8 for code in codes[:-1]]).tolist()]
            wrong = offsets(right)
            kit.encapsulated(ds, codes, table=False)
            if extended:
                ds.ExtendedOffsetTable = struct.pack(f"<{len(wrong)}Q", *wrong)
                ds.ExtendedOffsetTableLengths = struct.pack(f"<{len(codes)}Q", *map(len, codes))
            else:
                body = struct.pack(f"<{len(wrong)}L", *wrong)
                ds.PixelData = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(body)) + body + ds.PixelData[8:]
            ds.file_meta.TransferSyntaxUID = kit.FORMS[form]
            return kit.encode(ds)

        return build

    def halved(form: str) -> bytes:
        ds = kit.dataset(FRAMES, bits=12)
        kit.encapsulated(ds, kit.codes(ds, form))
        ds.PixelData = encapsulate(kit.codes(kit.dataset(FRAMES, bits=12), form), fragments_per_frame=2, has_bot=False)
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = kit.FORMS[form]
        return kit.encode(ds)

    wrong: dict[str, Callable[[list[int]], list[int]]] = {
        "zeros": lambda right: [0] * len(right),
        "one entry": lambda right: right[:1],
        "off by some bytes": lambda right: [offset + 4 for offset in right],
        "off by some bytes but for the first": lambda right: [right[0], *(offset + 2 for offset in right[1:])],
    }
    made = [
        Kind(
            title,
            f"{table}, {name}",
            "PS3.5 A.4, PS3.3 C.7.6.3.1.8",
            with_table(offsets, extended=table == "extended"),
            FRAMES[3] / 4095,
            remark="offset_table_ignored",
            forms=COMPRESSED,
            frame=3,
        )
        for table in ("basic", "extended")
        for name, offsets in wrong.items()
    ]
    right = Kind(
        "Offset tables",
        "basic",
        "PS3.5 A.4",
        with_table(lambda right: right),
        FRAMES[2] / 4095,
        forms=COMPRESSED,
        frame=2,
    )
    none = Kind(
        "Offset tables",
        "none, two fragments a frame",
        "PS3.5 A.4",
        halved,
        FRAMES[2] / 4095,
        forms=JPEG_FAMILY,
        differs="DCMTK finds no frames of several fragments without a table; A.4 lets it be empty",
        frame=2,
    )
    return [right, none, *made]
