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
        if str(header["transfer_syntax"]).startswith(dcmtk.JPEG_2000) or path.name in dcmtk.DIFFERENT:
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
        if off > dcmtk.ROUNDED.get(path.name, 0.0) + 2 * dcmtk.step(min(int(header["bits"] or 8), 12)):
            differences.append(f"{path.name}: {off:.4f}")
    assert not differences


def test_the_table_of_differences_is_short_and_true() -> None:
    names = {path.name for path in real_files()}
    if (SHARED / "data").is_dir():
        assert set(dcmtk.DIFFERENT) <= names
        assert set(dcmtk.ROUNDED) <= names
