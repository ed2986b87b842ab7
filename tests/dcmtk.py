"""DCMTK as an independent judge of pixels: what its renderer makes of a DICOM file.

Debian's package `dcmtk`; where it is missing the tests that ask it are skipped.
"""

from __future__ import annotations

import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pydicom
import pytest

# One reads JPEG, the other JPEG-LS; DCMTK's free edition has no JPEG 2000.
_JPEG, _JPEG_LS = "dcmj2pnm", "dcml2pnm"
JPEG_2000 = "1.2.840.10008.1.2.4.9"

needed = pytest.mark.skipif(
    shutil.which(_JPEG) is None or shutil.which(_JPEG_LS) is None,
    reason="DCMTK is not installed (Debian: apt-get install dcmtk)",
)


class Rendered(NamedTuple):
    """What DCMTK shows: [rows, columns] or [rows, columns, 3] in [0, 1], or None and its reason."""

    pixels: npt.NDArray[Any] | None
    reason: str


def render(data: bytes, folder: Path, frame: int = 0) -> Rendered:
    """A frame by its first VOI LUT, else its first window, else its full range."""
    source, target = folder / "judged.dcm", folder / "judged.pnm"
    source.write_bytes(data)
    ds = pydicom.dcmread(BytesIO(data), force=True, stop_before_pixels=True)
    wishes = [["+Wl", "1"]] if "VOILUTSequence" in ds else []
    wishes += [["+Wi", "1"]] if "WindowCenter" in ds else []
    syntax = str(ds.get("file_meta", {}).get("TransferSyntaxUID", ""))
    tool = _JPEG_LS if syntax.startswith("1.2.840.10008.1.2.4.8") else _JPEG
    reason = ""
    for wish in [*wishes, []]:
        target.unlink(missing_ok=True)
        command = [tool, "--no-overlays", "--frame", str(frame + 1), *wish, "+opw", str(source), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
        reason = " ".join(line for line in done.stderr.splitlines() if line[:2] in ("E:", "F:", "W:"))
        # With this wish it goes on without, and says so.
        if target.exists() and not (wish and "cannot select" in reason):
            return Rendered(_read_pnm(target.read_text()), reason)
    return Rendered(None, reason)


def _read_pnm(text: str) -> npt.NDArray[Any]:
    kind, *rest = "\n".join(line for line in text.splitlines() if not line.startswith("#")).split()
    columns, rows, full_scale = (int(word) for word in rest[:3])
    values = np.array(rest[3:], np.float64) / full_scale
    return values.reshape((rows, columns) if kind == "P2" else (rows, columns, 3))


def step(bits: int) -> float:
    """What two renderings may differ by in rounding: DCMTK counts 2^bits levels from 0 to 1, others 2^bits - 1."""
    return 1.0 / 2**bits + 1.5 / 65535
