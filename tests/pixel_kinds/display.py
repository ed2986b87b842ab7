"""Windows, rescales and padding with odd values."""

from __future__ import annotations

from collections.abc import Callable

import dicomkit as kit
import numpy as np
from pydicom.dataset import Dataset

from pixel_kinds.kind import RAMP, SHOWN, Kind, changed, of, windowed


def windows() -> list[Kind]:
    text = "A window or rescale that is no number: as if there were none"

    def words(ds: Dataset) -> None:
        kit.raw(kit.raw(ds, "WindowCenter", "DS", b"AUTO"), "WindowWidth", "DS", b"AUTO")

    def second(ds: Dataset) -> None:
        kit.raw(kit.raw(ds, "WindowCenter", "DS", b"AUTO\\1000"), "WindowWidth", "DS", b"AUTO\\500 ")

    slope = {"RescaleIntercept": "100", "WindowCenter": "1000", "WindowWidth": "500"}
    return [
        Kind(text, "window", "PS3.3 C.11.2.1.2, PS3.5 6.2", changed(RAMP, words, 12), SHOWN, remark="window_ignored"),
        Kind(
            text,
            "the first of two windows",
            "PS3.3 C.11.2.1.2, PS3.5 6.2",
            changed(RAMP, second, 12),
            windowed(RAMP, 1000, 500),
            remark="window_ignored",
            differs="DCMTK takes the first window or none",
        ),
        Kind(
            text,
            "Rescale Slope",
            "PS3.3 C.11.1, PS3.5 6.2",
            changed(RAMP, lambda ds: kit.raw(ds, "RescaleSlope", "DS", b"none"), 12),
            SHOWN,
            remark="rescale_ignored",
        ),
        Kind(
            "Rescale Slope 0: as without the rescale",
            "",
            "PS3.3 C.11.1.1.2",
            of(RAMP, 12, RescaleSlope="0", **slope),
            windowed(RAMP, 1000, 500),
            remark="rescale_ignored",
        ),
        Kind(
            "Rescale Slope or Intercept alone: the other is 1 or 0",
            "Intercept",
            "PS3.3 C.11.1",
            of(RAMP, 12, **slope),
            windowed(RAMP + 100.0, 1000, 500),
            remark="rescale_assumed",
            differs="DCMTK then leaves the rescale out; C.11.1.1.2 has values for both",
        ),
        *(
            Kind(
                "A LINEAR window narrower than 1 is none",
                width,
                "PS3.3 C.11.2.1.2.1",
                of(RAMP, 12, WindowCenter="1000", WindowWidth=width),
                SHOWN,
                remark=None if width == "0" else "window_ignored",
            )
            for width in ("0.5", "-5")
        ),
        Kind(
            "A LINEAR window narrower than 1 is none",
            "0 0",
            "PS3.3 C.11.2.1.2.1",
            of(RAMP, 12, WindowCenter="0", WindowWidth="0"),
            SHOWN,
        ),
    ]


def padding() -> list[Kind]:
    title = "Pixel Padding whose value representation contradicts Pixel Representation"
    policy = "DCMTK knows no percentile window"
    values = RAMP.astype("<i2") - 1000
    values[:3] = -2000
    kept = values[3:].astype(float)
    low, high = np.percentile(kept, (0.5, 99.5))
    want = np.clip((values - low) / (high - low), 0, 1)

    def words(*keywords: str) -> Callable[[Dataset], object]:
        def change(ds: Dataset) -> None:
            for keyword, value in zip(keywords, (-2000, -1900), strict=False):
                setattr(ds, keyword, value & 0xFFFF)
                ds[keyword].VR = "US"

        return change

    return [
        Kind(
            title,
            ", ".join(keywords),
            "PS3.3 C.7.5.1.1.2",
            changed(values, words(*keywords)),
            want,
            window="percentile",
            differs=policy,
            remark="pixel_padding_assumed",
        )
        for keywords in (("PixelPaddingValue",), ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    ]
