"""DCMTK as the judge of every kind of pixels and of real files: no difference, or one with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dcmtk
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pixel_kinds import CASES, IDS, Kind

from ad_jobs.errors import ImageError
from ad_jobs.images.decode import decode, read_header
from ad_jobs.images.policy import Limits, PixelPolicy

pytestmark = dcmtk.needed

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
    "rtdose_expb.dcm": "PS3.5 7.3: cells of 32 bits, highest byte first, as in rtdose.dcm; DCMTK swaps words",
    "rtdose_expb_1frame.dcm": "as rtdose_expb.dcm",
    "badVR.dcm": "PS3.3 C.7.6.6: Number of Frames is 1A; DCMTK reads 1",
    "liver_1frame.dcm": "PS3.4 B.5: a segmentation is no image to be scored",
    "liver_expb_1frame.dcm": "as liver_1frame.dcm",
    "SC_rgb_jpeg.dcm": "PS3.5 7.1.2: a header without some value representations, which DCMTK gives up",
}
SHARED = Path(__file__).parents[4] / "shared"
FOLDERS = [
    SHARED / "data" / "dicom_transfer_syntaxes",
    SHARED / "cases" / "pixels",
    Path(pydicom.__file__).parent / "data",
]
LIMITS = Limits(max_pixels=4_000_000)


def differs(kind: Kind, form: str) -> bool:
    """Whether DCMTK has a reason to; JPEG 2000 it does not read, and of two encodings of a header one will do."""
    return form in ("jpeg2000", "implicit", "deflated") or (bool(kind.differs) and form in kind.differs_in)


def compare(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> float:
    """The largest difference of two pictures; grey equals colour of equal channels."""
    if ours.ndim != theirs.ndim:
        ours, theirs = (part if part.ndim == 3 else np.repeat(part[..., None], 3, axis=2) for part in (ours, theirs))
    return float(np.abs(ours - theirs).max())


def shown(data: bytes, rows: int, columns: int, frame: int = 0) -> npt.NDArray[Any] | None:
    """A frame at its own size, None if it is refused."""
    try:
        pixels = (
            decode(data, PixelPolicy(channels=3, height_px=rows, width_px=columns), LIMITS, only=frame).frames[0].pixels
        )
    except ImageError:
        return None
    return pixels[0] / 65535 if len(pixels) == 1 else pixels.transpose(1, 2, 0) / 65535


@pytest.mark.parametrize(
    ("kind", "form"),
    [pytest.param(*case, id=name) for case, name in zip(CASES, IDS, strict=True) if not differs(*case)],
)
def test_dcmtk_shows_every_kind_as_it_is_wanted(kind: Kind, form: str, tmp_path: Path) -> None:
    data = kind.build(form)
    theirs = dcmtk.render(data, tmp_path, kind.frame)
    if isinstance(kind.want, str):
        assert theirs.pixels is None
        return
    assert theirs.pixels is not None, theirs.reason
    bits = int(pydicom.dcmread(pydicom.filebase.DicomBytesIO(data), stop_before_pixels=True).BitsStored)
    assert compare(np.asarray(kind.want), theirs.pixels) <= max(kind.rounded, dcmtk.step(min(bits, 12)))


# The judge takes seconds for larger ones.
MOST_PIXELS = 600_000


def real_files() -> list[Path]:
    found = [path for folder in FOLDERS if folder.is_dir() for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in found if path.read_bytes()[128:132] == b"DICM"]


def test_dcmtk_shows_every_real_file_as_we_do(tmp_path: Path) -> None:
    differences = []
    for path in real_files():
        data = path.read_bytes()
        header = read_header(data)
        if str(header["transfer_syntax"]).startswith(dcmtk.JPEG_2000) or path.name in DIFFERENT:
            continue
        rows, columns = int(header["rows"] or 64), int(header["columns"] or 64)
        if rows * columns > MOST_PIXELS:
            continue
        ours, theirs = shown(data, rows, columns), dcmtk.render(data, tmp_path)
        if ours is None or theirs.pixels is None:
            if (ours is None) != (theirs.pixels is None):
                differences.append(f"{path.name}: {'ours' if ours is None else 'theirs'} is none")
            continue
        off = compare(ours, theirs.pixels)
        if off > ROUNDED.get(path.name, 0.0) + 2 * dcmtk.step(min(int(header["bits"] or 8), 12)):
            differences.append(f"{path.name}: {off:.4f}")
    assert not differences


def test_the_table_of_differences_is_short_and_true() -> None:
    names = {path.name for path in real_files()}
    if (SHARED / "data").is_dir():
        assert set(DIFFERENT) <= names
        assert set(ROUNDED) <= names
