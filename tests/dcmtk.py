"""DCMTK as an independent judge of pixels: what its renderer makes of a DICOM file.

Debian's package `dcmtk`; where it is missing the tests that ask it are skipped.
"""

from __future__ import annotations

import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
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

# How far DCMTK's picture may be off where both are right, by file: it rounds rescaled values to whole numbers before
# the window, and colour to whole numbers twice. PS3.3 C.11.1.1.2 and C.7.6.3.1.2 know no rounding.
ROUNDED = {
    "CTImage.dcm_JPEGProcess10_12TransferSyntax_1.2.840.10008.1.2.4.55.dcm": 0.5 / 399,
    "CTImage.dcm_JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51.dcm": 0.5 / 399,
    "CTImage.dcm_JPEGProcess6_8TransferSyntax_1.2.840.10008.1.2.4.53.dcm": 0.5 / 399,
    "US-YBR_FULL_422-EVRLE.dcm": 1.5 / 255,
    "SC_ybr_full_422_uncompressed.dcm": 1.5 / 255,
}
# Files of which DCMTK shows another picture, or one of the two shows none, and who is right.
DIFFERENT = {
    "CT0012.fragmented_no_bot_jpeg_baseline.51.dcm": "PS3.3 C.7.6.16.2.10: the window is in a functional group, which "
    "DCMTK does not read",
    "rtdose_expb.dcm": "32 bits in big endian, written with the highest byte first and so read, as rtdose.dcm shows; "
    "by PS3.5 7.3 words are swapped one by one, as DCMTK does",
    "rtdose_expb_1frame.dcm": "as rtdose_expb.dcm",
    "badVR.dcm": "PS3.3 C.7.6.6: Number of Frames is 1A; DCMTK reads 1",
    "liver_1frame.dcm": "PS3.4 B.5: a segmentation is no image to be scored",
    "liver_expb_1frame.dcm": "as liver_1frame.dcm",
    "SC_rgb_jpeg.dcm": "PS3.5 7.1.2: a header without some value representations, which DCMTK gives up",
}


class Rendered(NamedTuple):
    """What DCMTK shows: [rows, columns] or [rows, columns, 3] in [0, 1], or None and its reason."""

    pixels: npt.NDArray[Any] | None
    reason: str


def render(data: bytes, folder: Path, frame: int = 0) -> Rendered:
    """A frame by its first VOI LUT, else its first window, else its full range."""
    source, target = folder / "judged.dcm", folder / "judged.png"
    source.write_bytes(data)
    ds = pydicom.dcmread(BytesIO(data), force=True, stop_before_pixels=True)
    wishes = [["+Wl", "1"]] if "VOILUTSequence" in ds else []
    wishes += [["+Wi", "1"]] if "WindowCenter" in ds else []
    syntax = str(ds.get("file_meta", {}).get("TransferSyntaxUID", ""))
    tool = _JPEG_LS if syntax.startswith("1.2.840.10008.1.2.4.8") else _JPEG
    reason = ""
    for wish in [*wishes, []]:
        target.unlink(missing_ok=True)
        command = [
            tool,
            "--no-overlays",
            "--frame",
            str(frame + 1),
            *wish,
            "--nointerlace",
            "+on2",
            str(source),
            str(target),
        ]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
        reason = " ".join(line for line in done.stderr.splitlines() if line[:2] in ("E:", "F:", "W:"))
        # With this wish it goes on without, and says so.
        if target.exists() and not (wish and "cannot select" in reason):
            values = imagecodecs.png_decode(target.read_bytes())
            return Rendered(values / np.iinfo(values.dtype).max, reason)
    return Rendered(None, reason)


def step(bits: int) -> float:
    """What two renderings may differ by in rounding: DCMTK counts 2^bits levels from 0 to 1, others 2^bits - 1."""
    return 1.0 / 2**bits + 1.5 / 65535
