"""Whatever the bytes: frames or an ImageError with a code. Real odd files, cut files, spoiled files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import dicomkit as kit
import imagecodecs
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.filebase import DicomBytesIO
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.decode import decode, read_header
from ad_jobs.images.policy import Limits, PixelPolicy

POLICY = PixelPolicy(channels=3, height_px=32, width_px=48)
LIMITS = Limits(max_pixels=4_000_000)
SYNTAXES = Path(__file__).parents[4] / "shared" / "data" / "dicom_transfer_syntaxes"
SHIPPED = Path(pydicom.__file__).parent / "data"
CUTS, SPOILS = 60, 60


def outcome(data: bytes) -> str:
    """`scored` or the error code; any other exception is the test's failure."""
    read_header(data)
    try:
        decoded = decode(data, POLICY, LIMITS)
    except ImageError as error:
        return str(error.code) if isinstance(error.code, ErrorCode) and error.detail else "unnamed"
    for frame in decoded.frames:
        assert frame.pixels.dtype == np.uint16
        assert frame.pixels.shape in ((1, 32, 48), (3, 32, 48))
    return "scored"


def report(outcomes: dict[str, str]) -> None:
    """Print the table of reasons (seen with -s, and when an assertion fails)."""
    print("\n".join(f"{name:70} {result}" for name, result in sorted(outcomes.items())))
    print(dict(Counter(outcomes.values())))


@pytest.mark.shared
@pytest.mark.skipif(not SYNTAXES.is_dir(), reason=f"{SYNTAXES} is not there")
def test_the_same_ct_in_every_transfer_syntax() -> None:
    outcomes = {path.name: outcome(path.read_bytes()) for path in sorted(SYNTAXES.glob("*.dcm"))}
    report(outcomes)
    assert outcomes.pop("no-pixel-data.dcm") == "not_an_image"
    assert set(outcomes.values()) == {"scored"}
    # The same picture whatever the syntax: exactly where it is lossless, nearly where it is not.
    # Tolerances are what the lossy encoders took (mean difference, of full scale); JPEG baseline has 8 bits.
    native = decode((SYNTAXES / "CTImage.dcm").read_bytes(), POLICY, LIMITS).frames[0].pixels / 65535
    lossy = {".50": 0.03, ".51": 0.005, ".53": 0.005, ".55": 0.005, ".81": 1e-3, ".91": 1e-3}
    for path in sorted(SYNTAXES.glob("CTImage.dcm_*")):
        pixels = decode(path.read_bytes(), POLICY, LIMITS).frames[0].pixels / 65535
        tolerance = lossy.get(path.stem[-3:], 0.0)
        assert np.abs(pixels - native).mean() <= tolerance, path.name


def test_every_file_that_pydicom_ships_is_decoded_or_named() -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    outcomes = {str(path.relative_to(SHIPPED)): outcome(path.read_bytes()) for path in files}
    report(outcomes)
    assert len(outcomes) > 100
    counts = Counter(outcomes.values())
    assert counts["scored"] >= 90
    # The decoders here read all of it; what is left is not DICOM, has no pixels, or is broken on purpose.
    assert set(counts) <= {"scored", "not_an_image", "unknown_format", "truncated", "corrupt", "too_many_pixels"}
    broken = {Path(name).name for name, result in outcomes.items() if result == "corrupt"}
    assert broken <= {"badVR.dcm", "meta_missing_tsyntax.dcm", "nested_priv_SQ.dcm"}


def picture(kind: str, tmp_path: Path) -> bytes:
    """A small file of each kind."""
    rng = np.random.default_rng(3)
    grey16 = rng.integers(0, 65536, (24, 40), dtype=np.uint16)
    rgb8 = rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)
    file = tmp_path / "picture"
    ds = kit.dataset(np.stack([grey16] * 2), WindowCenter="3000", WindowWidth="9000")
    match kind:
        case "png" | "jpeg" | "progressive":
            image = Image.fromarray(rgb8)
            image.save(file, "PNG" if kind == "png" else "JPEG", progressive=kind == "progressive")
        case "png16":
            file.write_bytes(imagecodecs.png_encode(np.repeat(grey16[..., None], 3, axis=2)))
        case "tiff" | "tiff-zlib" | "tiff-tiled":
            options: dict[str, Any] = {
                "tiff": {},
                "tiff-zlib": {"compression": "zlib", "rowsperstrip": 4},
                "tiff-tiled": {"compression": "lzw", "tile": (16, 16)},
            }[kind]
            tifffile.imwrite(file, rgb8, photometric="rgb", **options)
        case "tiff-pillow":
            Image.fromarray(rgb8).save(file, "TIFF")
        case "dicom":
            file.write_bytes(kit.encode(ds))
        case "dicom-deflated":
            ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
            file.write_bytes(kit.encode(ds))
        case "dicom-headless":
            del ds.file_meta
            stream = DicomBytesIO()
            pydicom.dcmwrite(stream, ds, implicit_vr=True, little_endian=True, enforce_file_format=False)
            file.write_bytes(stream.getvalue())
        case _:
            file.write_bytes(kit.compressed(ds, kind.removeprefix("dicom-")))
    return file.read_bytes()


KINDS = [
    *("png", "png16", "jpeg", "progressive", "tiff", "tiff-zlib", "tiff-tiled", "tiff-pillow"),
    *("dicom", "dicom-deflated", "dicom-headless", "dicom-rle", "dicom-jpeg2000", "dicom-jpeg-ls"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_never_scored(kind: str, tmp_path: Path) -> None:
    data = picture(kind, tmp_path)
    assert outcome(data) == "scored"
    rng = np.random.default_rng(len(data))
    # The last bytes may be padding, or the delimiter behind the last fragment: no pixel needs them.
    ends = sorted({*rng.integers(0, len(data) - 8, CUTS).tolist(), 1, 7, 131, 200})
    outcomes = {f"{kind} cut at {end} of {len(data)}": outcome(data[:end]) for end in ends}
    report(outcomes)
    # Within its first bytes a file shows no format; a DICOM header cut between two elements has no pixels.
    # What must not be is a score.
    assert set(outcomes.values()) <= {"truncated", "corrupt", "unknown_format", "empty", "not_an_image"}
    counts = Counter(outcomes.values())
    assert counts["truncated"] >= 0.6 * len(outcomes)


@pytest.mark.parametrize("kind", KINDS)
def test_spoiled_bytes_give_frames_or_a_code(kind: str, tmp_path: Path) -> None:
    data = picture(kind, tmp_path)
    rng = np.random.default_rng(len(data) + 1)
    outcomes = {}
    for spoil in range(SPOILS):
        bytes_ = bytearray(data)
        for place in rng.integers(0, len(data) if spoil % 2 else min(len(data), 900), 3):
            bytes_[place] = rng.integers(256)
        outcomes[f"{kind} spoiled {spoil}"] = outcome(bytes(bytes_))
    report(outcomes)
    assert len(outcomes) == SPOILS
