"""How anatomy comes out of a scanner: matrix, bias field, noise, stored values, rescale and window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from ad_jobs.phantom.anatomy import Floats, noise
from ad_jobs.phantom.codecs import BITS_STORED, JPEG_2000_LOSSLESS, JPEG_LOSSLESS_SV1, JPEG_LS_LOSSLESS, RLE_LOSSLESS

_FULL = 2**BITS_STORED - 1
_BRIGHTEST = 1.05  # the signal that the window shows as white: a little headroom above the scalp


@dataclass(frozen=True)
class Scanner:
    """One make of scanner. A signal looks alike from all of them once it is read as its header says."""

    manufacturer: str
    model: str
    rows: float  # of the matrix, as a share of the archive's nominal size
    columns: float
    photometric: str
    gain: float  # stored value of signal 1
    slope: float
    intercept: float
    noise: float  # deviation of each channel, in units of signal
    bias: float  # deviation of the logarithm of the receiving coil's profile
    syntaxes: tuple[str, ...]  # taken in turn
    second_window: bool = False

    def matrix(self, size_px: int) -> tuple[int, int]:
        """Rows and columns of its pictures, even numbers."""
        return 2 * round(self.rows * size_px / 2), 2 * round(self.columns * size_px / 2)


SCANNERS = (
    Scanner(
        "Aster Imaging",
        "A1",
        1.0,
        1.0,
        "MONOCHROME2",
        2600.0,
        1.0,
        0.0,
        0.012,
        0.06,
        (str(ExplicitVRLittleEndian), JPEG_2000_LOSSLESS),
    ),
    Scanner(
        "Borealis",
        "B-15",
        1.09,
        1.0,
        "MONOCHROME2",
        3300.0,
        0.5,
        -100.0,
        0.016,
        0.08,
        (str(ImplicitVRLittleEndian), JPEG_LS_LOSSLESS, RLE_LOSSLESS),
    ),
    Scanner(
        "Cassiopeia",
        "C Pro",
        1.0,
        1.0,
        "MONOCHROME1",
        3600.0,
        1.0,
        0.0,
        0.014,
        0.08,
        (str(ExplicitVRBigEndian), JPEG_LOSSLESS_SV1),
    ),
    Scanner(
        "Delphinus",
        "D30",
        1.0,
        0.93,
        "MONOCHROME2",
        1800.0,
        2.0,
        -1024.0,
        0.018,
        0.10,
        (str(DeflatedExplicitVRLittleEndian), str(ExplicitVRLittleEndian)),
        second_window=True,
    ),
)


class Acquired(NamedTuple):
    """Stored values uint16 [rows, columns] of 12 bits, and the windows in modality units: (centre, width)."""

    stored: NDArray[np.uint16]
    windows: list[tuple[float, float]]


def acquire(signal: Floats, scanner: Scanner, rng: np.random.Generator) -> Acquired:
    """What `scanner` stores of a signal [rows, columns] in [0, 1]: coil profile, Rician noise, 12 bits."""
    rows, columns = signal.shape
    profile = np.exp(scanner.bias * np.clip(noise(rng, rows, columns, 0.7), -2.0, 2.0))
    exposed = signal * profile * rng.normal(1.0, 0.03)
    # The magnitude of a complex signal with Gaussian noise in both parts: Rician, grainy in the dark too.
    real, imaginary = rng.normal(0.0, scanner.noise, (2, rows, columns))
    measured = np.hypot(exposed + real, imaginary) * scanner.gain
    stored = np.clip(np.rint(measured), 0, _FULL).astype(np.uint16)
    white = min(float(_FULL), _BRIGHTEST * scanner.gain)
    limits = np.array([0.0, white])
    if scanner.photometric == "MONOCHROME1":  # PS3.3 C.7.6.3.1.2: the lowest value is shown white
        stored = np.uint16(_FULL) - stored
        limits = _FULL - limits[::-1]
    low, high = limits * scanner.slope + scanner.intercept
    windows = [(float(low + high) / 2, float(high - low))]
    if scanner.second_window:
        windows.append((float(low + 0.3 * (high - low)), float(0.2 * (high - low))))
    return Acquired(stored, windows)
