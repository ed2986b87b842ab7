"""Headers that are incomplete, or contradict themselves."""

from __future__ import annotations

import struct

import dicomkit as kit
import numpy as np

from pixel_kinds.kind import COMPRESSED, NATIVE, RAMP, RGB, SHOWN, Kind, changed, having


def contradictions() -> list[Kind]:
    samples, spelling = "Samples Per Pixel missing: 1", "A photometric interpretation in other letters"
    unsafe = "A header with no safe reading is refused, by the attribute's name"
    colour = having(PlanarConfiguration=None)
    incomplete = "DCMTK decompresses nothing under an incomplete header"
    return [
        Kind(
            samples,
            "",
            "PS3.3 C.7.6.3.1.1",
            changed(RAMP, having(SamplesPerPixel=None), 12),
            SHOWN,
            remark="samples_per_pixel_assumed",
            differs=incomplete,
            differs_in=COMPRESSED,
        ),
        *(
            Kind(
                spelling,
                repr(name),
                "PS3.3 C.7.6.3.1.2",
                changed(RAMP, having(PhotometricInterpretation=name), 12),
                1 - SHOWN,
            )
            for name in ("monochrome1", " MONOCHROME1", "Monochrome_1")
        ),
        Kind(spelling, "'rgb'", "PS3.3 C.7.6.3.1.2", changed(RGB, having(PhotometricInterpretation="rgb")), RGB / 255),
        Kind(
            "High Bit missing: Bits Stored - 1",
            "",
            "PS3.5 8.1.1",
            changed(RAMP, having(HighBit=None), 12),
            SHOWN,
            remark="high_bit_assumed",
            differs=incomplete,
            differs_in=COMPRESSED,
        ),
        Kind(
            "Samples Per Pixel 1 of three: by the photometric interpretation",
            "",
            "PS3.3 C.7.6.3.1.2",
            changed(RGB, having(SamplesPerPixel=1)),
            RGB / 255,
            remark="samples_per_pixel_assumed",
            differs=incomplete,
            differs_in=COMPRESSED,
        ),
        *(
            Kind(unsafe, name, "PS3.3 C.7.6.3", changed(RAMP, having(**{name: None}), 12), name)
            for name in ("BitsStored", "BitsAllocated", "PixelRepresentation", "PhotometricInterpretation", "Rows")
        ),
        Kind(
            unsafe,
            "BitsStored over BitsAllocated",
            "PS3.5 8.1.1",
            changed(RAMP, having(BitsStored=20), 12),
            "BitsStored",
            differs="DCMTK goes by the code stream",
            differs_in=("jpeg-lossless",),
        ),
        Kind(unsafe, "HighBit below the value", "PS3.5 8.1.1", changed(RAMP, having(HighBit=7), 12), "HighBit"),
        Kind(
            unsafe,
            "MONOCHROME2 of three samples",
            "PS3.3 C.7.6.3.1.2",
            changed(RGB, having(PhotometricInterpretation="MONOCHROME2")),
            "SamplesPerPixel",
            differs="DCMTK takes a third of the samples for the picture",
        ),
        Kind(
            unsafe,
            "NumberOfFrames is no number",
            "PS3.3 C.7.6.6",
            changed(RAMP, lambda ds: kit.raw(ds, "NumberOfFrames", "IS", b"1A"), 12),
            "NumberOfFrames",
            differs="DCMTK reads 1 of 1A",
        ),
        Kind(
            unsafe,
            "native colour without PlanarConfiguration",
            "PS3.3 C.7.6.3.1.3",
            changed(RGB, colour),
            "PlanarConfiguration",
            forms=NATIVE,
        ),
        Kind(
            unsafe,
            "compressed pixels in a native transfer syntax",
            "PS3.5 A.4",
            _mislabelled,
            "TransferSyntaxUID",
            forms=COMPRESSED,
        ),
        Kind(
            unsafe,
            "native pixels in a compressed transfer syntax",
            "PS3.5 A.4",
            _unencapsulated,
            "TransferSyntaxUID",
            forms=COMPRESSED,
        ),
    ]


def _mislabelled(form: str) -> bytes:
    data = kit.compressed(kit.dataset(np.stack([RAMP] * 4), bits=12), form)
    uid = str(kit.FORMS[form]).encode()
    return data.replace(uid + bytes(len(uid) % 2), b"1.2.840.10008.1.2.1".ljust(len(uid) + len(uid) % 2, b"\x00"), 1)


def _unencapsulated(form: str) -> bytes:
    data = kit.dicom(RAMP, bits=12)
    uid, explicit = str(kit.FORMS[form]).encode(), b"1.2.840.10008.1.2.1\x00"
    uid += bytes(len(uid) % 2)
    at = data.index(explicit)
    start = data.index(b"\x02\x00\x00\x00UL") + 8
    (group,) = struct.unpack_from("<L", data, start)
    head = data[:start] + struct.pack("<L", group + len(uid) - len(explicit)) + data[start + 4 : at - 2]
    return head + struct.pack("<H", len(uid)) + uid + data[at + len(explicit) :]
