"""Native pixel data, PS3.5 8.1 and 8.2: from an object's bytes to the stored values of each frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.fragments import is_encapsulated
from ad_jobs.images.pixel_module import YBR_422, PixelModule
from ad_jobs.images.stored_values import from_cells
from cluster.counting import counted

Array = npt.NDArray[Any]


class NativePixels:
    """The frames of native pixel data, all of which are there."""

    def __init__(self, ds: Any, module: PixelModule) -> None:
        element = ds[module.tag]
        self._bytes = element.value or b""
        # PS3.5 A.4: only fragments have no length of their own.
        self._undefined = bool(getattr(element, "is_undefined_length", False))
        self._module = module
        self._order = "<" if module.little else ">"
        self._halved = module.photometric in YBR_422
        if module.samples > 1 and not self._halved and module.planar is None:
            raise ImageError(ErrorCode.CORRUPT, "PlanarConfiguration is missing")
        if self._halved and module.columns % 2:
            detail = f"{module.columns} Columns, PhotometricInterpretation {module.photometric}"
            raise ImageError(ErrorCode.CORRUPT, detail)
        pixels = module.rows * module.columns
        # Two pixels of YBR 4:2:2 are four samples.
        self._cells = pixels * 2 if self._halved else pixels * module.samples
        self._check()
        # PS3.5 8.1.1, annex D: cells of up to eight bits lie in words, if they are written as such.
        if not module.little and element.VR == "OW" and module.allocated <= 8 and len(self._bytes) % 2 == 0:
            self._bytes = np.frombuffer(self._bytes, np.uint16).byteswap().tobytes()

    def frame(self, index: int) -> Array:
        """Stored values of a frame, [rows, columns] or [rows, columns, 3]; floats as they are."""
        module = self._module
        values = self._floats(index) if module.floating else from_cells(self._integers(index), module)
        if module.samples == 1:
            return values.reshape(module.size)
        if self._halved:
            return _full_chrominance(values, module.size)
        if module.planar:
            return np.moveaxis(values.reshape(module.samples, *module.size), 0, -1)
        return values.reshape(*module.size, module.samples)

    def _floats(self, index: int) -> Array:
        size = self._module.allocated // 8
        return np.frombuffer(self._bytes, f"{self._order}f{size}", self._cells, index * self._cells * size)

    def _integers(self, index: int) -> Array:
        """The cells of a frame, unsigned, in the machine's order."""
        bits = self._module.allocated
        if bits in (8, 16, 32, 64):
            offset = index * self._cells * bits // 8
            cells = np.frombuffer(self._bytes, f"{self._order}u{bits // 8}", self._cells, offset)
            return cells.astype(cells.dtype.newbyteorder("="), copy=False)
        # PS3.5 8.1.1 and annex D: cells lie side by side from the lowest bit on, across bytes and frames.
        first = index * self._cells * bits
        whole = np.frombuffer(self._bytes, np.uint8)[first // 8 : (first + self._cells * bits + 7) // 8]
        if bits % 8 == 0 and self._order == ">":
            whole = whole.reshape(-1, bits // 8)[:, ::-1].reshape(-1)
        loose = np.unpackbits(whole, bitorder="little")[first % 8 :][: self._cells * bits].reshape(-1, bits)
        if bits == 1:
            return loose[:, 0]
        cells = np.zeros(self._cells, np.uint64)
        for bit in range(bits):
            cells |= loose[:, bit].astype(np.uint64) << np.uint64(bit)
        return cells.astype(f"u{next(size for size in (1, 2, 4, 8) if size * 8 >= bits)}")

    def _check(self) -> None:
        """Raise ImageError if bytes are missing, or are not native."""
        if self._undefined or is_encapsulated(self._bytes):
            raise ImageError(ErrorCode.CORRUPT, "PixelData is encapsulated, TransferSyntaxUID says native")
        needed = (self._cells * self._module.frames * self._module.allocated + 7) // 8
        if len(self._bytes) < needed:
            raise ImageError(ErrorCode.TRUNCATED, f"{len(self._bytes)} of {counted(needed, 'byte')} of pixel data")


def _full_chrominance(values: Array, size: tuple[int, int]) -> Array:
    """Y Y Cb Cr of every two pixels in a row as Y Cb Cr of each, PS3.3 C.7.6.3.1.2."""
    pairs = values.reshape(-1, 4)
    full = np.empty((len(pairs), 2, 3), values.dtype)
    full[:, 0, 0], full[:, 1, 0] = pairs[:, 0], pairs[:, 1]
    full[:, :, 1:] = pairs[:, None, 2:]
    return full.reshape(*size, 3)
