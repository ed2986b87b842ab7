"""The colours of a heatmap: dark violet through red to pale yellow, with lightness rising evenly.

Equal steps of the heatmap are equal steps of lightness (CIE L*), so that the map reads the same in grey, on paper and
with any colour vision.
What is cold is transparent and lets the original show.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

# Anchors in sRGB; each lands at the place on the scale that its lightness has between the first and the last.
_ANCHORS = ((20, 8, 48), (84, 18, 110), (156, 41, 100), (216, 75, 62), (246, 138, 35), (250, 198, 60), (252, 253, 191))
_STEPS = 256

# Of a heatmap as it is drawn, whose half is the decision: below COLD there is no colour, from WARM on it covers fully.
COLD, WARM = 0.3, 0.65

# sRGB, IEC 61966-2-1, and its D65 white.
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _TO_XYZ.sum(axis=1)


@cache
def table() -> npt.NDArray[np.uint8]:
    """The colour map, uint8 [256, 3], from cold to hot."""
    lab = _to_lab(np.array(_ANCHORS, dtype=np.float64) / 255)
    lightness = np.linspace(lab[0, 0], lab[-1, 0], _STEPS)
    columns = [lightness, *(np.interp(lightness, lab[:, 0], lab[:, k]) for k in (1, 2))]
    rgb = np.rint(np.clip(_to_srgb(np.stack(columns, axis=1)), 0, 1) * 255).astype(np.uint8)
    rgb.setflags(write=False)
    return rgb


def overlay(heatmap: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """A heatmap as it is drawn (`Heatmap.drawn`), [H, W] in [0, 1], as colours with transparency, uint8 [H, W, 4]."""
    index = np.rint(np.clip(heatmap, 0, 1) * (_STEPS - 1)).astype(np.intp)
    alpha = np.clip((heatmap - COLD) / (WARM - COLD), 0, 1)
    return np.dstack([table()[index], np.rint(alpha * 255).astype(np.uint8)])


def css_gradient(stops: int = 9) -> str:
    """The map as CSS colour stops from cold to hot, transparent where the overlay is."""
    values = np.linspace(0, 1, stops)
    colours = overlay(values[None])[0]
    return ", ".join(
        f"rgba({r},{g},{b},{a / 255:.2f}) {v:.1%}" for (r, g, b, a), v in zip(colours, values, strict=True)
    )


def _to_lab(rgb: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    t = linear @ _TO_XYZ.T / _WHITE
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def _to_srgb(lab: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    y = (lab[:, 0] + 16) / 116
    f = np.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], axis=1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * _WHITE
    linear = np.clip(xyz @ np.linalg.inv(_TO_XYZ).T, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
