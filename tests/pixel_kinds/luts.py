"""Lookup tables that are written in other ways than decoders expect."""

from __future__ import annotations

import dicomkit as kit
import numpy as np

from pixel_kinds.kind import ANGIOGRAPHY, CURVE, RAMP, SHOWN, Kind, curved, empty_table, of, table, windowed


def luts() -> list[Kind]:
    voi, modality, clause = "VOI LUT", "Modality LUT", "PS3.3 C.11.2.1.1"
    signed = "The first value mapped, signed where the values are"
    hounsfield = {"RescaleSlope": "1", "RescaleIntercept": "-1024"}
    below = RAMP.astype("<i2") - 1500
    short = curved(np.minimum(RAMP, 1499))
    window = {"WindowCenter": "1000", "WindowWidth": "500"}
    shown_short = "LUT Data shorter than the descriptor says: the last entry holds on"
    other = "LUT Data as OW, in the object's order of bytes"
    empty = "An empty item in a LUT sequence: as if there were none"
    packed = np.arange(256)[::-1]
    eight = "Entries of 8 bits, two in a word"
    return [
        Kind(
            signed,
            voi,
            clause,
            of(RAMP, 12, **hounsfield, VOILUTSequence=table(-1024, CURVE, 12)),
            curved(RAMP),
            remark="lut_descriptor_assumed",
        ),
        Kind(
            signed,
            modality,
            "PS3.3 C.11.1.1.1",
            of(below, 13, ModalityLUTSequence=table(-1500, CURVE, 12, ModalityLUTType="US")),
            curved(RAMP),
            remark="lut_descriptor_assumed",
        ),
        Kind(other, voi, clause, of(RAMP, 12, VOILUTSequence=table(0, CURVE, 12, vr="OW")), curved(RAMP)),
        Kind(
            other,
            modality,
            "PS3.3 C.11.1.1.1",
            of(RAMP, 12, ModalityLUTSequence=table(0, CURVE, 12, vr="OW", ModalityLUTType="US")),
            curved(RAMP),
        ),
        Kind(
            shown_short,
            "half of it, of 12 bits",
            clause,
            of(RAMP, 12, VOILUTSequence=table(0, CURVE[:1024], 12, count=2048)),
            curved(np.minimum(RAMP, 1023)),
            remark="lut_data_short",
            differs="DCMTK takes it for bytes; entries of 12 bits are none",
        ),
        *(
            Kind(
                shown_short,
                f"{voi}, {vr}",
                clause,
                of(RAMP, 12, VOILUTSequence=table(0, CURVE[:1500], 12, vr=vr, count=2048)),
                short,
                remark="lut_data_short",
            )
            for vr in ("US", "OW")
        ),
        Kind(
            shown_short,
            modality,
            "PS3.3 C.11.1.1.1",
            of(RAMP, 12, ModalityLUTSequence=table(0, CURVE[:1500], 12, count=2048, ModalityLUTType="US")),
            short,
            remark="lut_data_short",
        ),
        Kind(
            empty,
            voi,
            "PS3.3 C.11.2",
            of(RAMP, 12, VOILUTSequence=empty_table(), **window),
            windowed(RAMP, 1000, 500),
            remark="voi_lut_ignored",
        ),
        Kind(
            empty,
            modality,
            "PS3.3 C.11.1",
            of(RAMP, 12, ModalityLUTSequence=empty_table(), **hounsfield, **window),
            windowed(RAMP - 1024.0, 1000, 500),
            remark="modality_lut_ignored",
        ),
        Kind(
            eight,
            voi,
            clause,
            of(kit.ramp(256, "u1"), VOILUTSequence=table(0, packed.astype("u1").view("<u2"), 8, vr="OW", count=256)),
            packed[kit.ramp(256)] / 255,
        ),
        *(
            Kind(
                "XA and XRF: a Modality LUT of relationship LOG or DISP is not for display",
                relationship,
                "PS3.3 C.8.7.1.1.2",
                of(
                    RAMP,
                    12,
                    SOPClassUID=ANGIOGRAPHY,
                    Modality="XA",
                    PixelIntensityRelationship=relationship,
                    ModalityLUTSequence=table(0, CURVE, 12, ModalityLUTType="US"),
                ),
                SHOWN if relationship != "LIN" else curved(RAMP),
                differs="DCMTK applies no Modality LUT of XA, whatever its relationship"
                if relationship == "LIN"
                else "",
            )
            for relationship in ("LOG", "DISP", "LIN")
        ),
    ]
