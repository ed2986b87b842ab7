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

# Where scanners stand.
INSTITUTIONS = ("Phantom Hill Hospital", "Phantom Harbour Clinic")
_FULL = 2**BITS_STORED - 1
# The signal that the window shows as white: a little headroom above the scalp.
_BRIGHTEST = 1.05


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """One make of scanner. A signal looks alike from all of them once it is read as its header says.

    `rows` and `columns` are of the matrix, as a share of the archive's nominal size.
    `gain` is the stored value of signal 1; `noise` the deviation of each channel in units of signal, `bias` that of the
    logarithm of the receiving coil's profile.
    `syntaxes` are taken in turn.
    """

    manufacturer: str
    model: str
    institution: str
    rows: float = 1.0
    columns: float = 1.0
    photometric: str = "MONOCHROME2"
    gain: float
    slope: float = 1.0
    intercept: float = 0.0
    noise: float
    bias: float
    syntaxes: tuple[str, ...]
    second_window: bool = False

    def matrix(self, size_px: int) -> tuple[int, int]:
        """Rows and columns of its pictures, even numbers."""
        return 2 * round(self.rows * size_px / 2), 2 * round(self.columns * size_px / 2)


SCANNERS = (
    Scanner(
        manufacturer="Aster Imaging",
        model="A1",
        institution=INSTITUTIONS[0],
        gain=2600.0,
        noise=0.012,
        bias=0.06,
        syntaxes=(str(ExplicitVRLittleEndian), JPEG_2000_LOSSLESS),
    ),
    Scanner(
        manufacturer="Borealis",
        model="B-15",
        institution=INSTITUTIONS[1],
        rows=1.09,
        gain=3300.0,
        slope=0.5,
        intercept=-100.0,
        noise=0.016,
        bias=0.08,
        syntaxes=(str(ImplicitVRLittleEndian), JPEG_LS_LOSSLESS, RLE_LOSSLESS),
    ),
    Scanner(
        manufacturer="Cassiopeia",
        model="C Pro",
        institution=INSTITUTIONS[0],
        photometric="MONOCHROME1",
        gain=3600.0,
        noise=0.014,
        bias=0.08,
        syntaxes=(str(ExplicitVRBigEndian), JPEG_LOSSLESS_SV1),
    ),
    Scanner(
        manufacturer="Delphinus",
        model="D30",
        institution=INSTITUTIONS[1],
        columns=0.93,
        gain=1800.0,
        slope=2.0,
        intercept=-1024.0,
        noise=0.018,
        bias=0.10,
        syntaxes=(str(DeflatedExplicitVRLittleEndian), str(ExplicitVRLittleEndian)),
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
    # PS3.3 C.7.6.3.1.2: the lowest value is shown white.
    if scanner.photometric == "MONOCHROME1":
        stored = np.uint16(_FULL) - stored
        limits = _FULL - limits[::-1]
    low, high = limits * scanner.slope + scanner.intercept
    windows = [(float(low + high) / 2, float(high - low))]
    if scanner.second_window:
        windows.append((float(low + 0.3 * (high - low)), float(0.2 * (high - low))))
    return Acquired(stored, windows)
