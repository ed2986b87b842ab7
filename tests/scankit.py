"""A small archive of every kind of object, a small model and readers of runs, for the tests of scan."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComprehensiveSRStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    generate_uid,
)

from ad_jobs.images.policy import PixelPolicy, Tiles
from ad_jobs.results.read import read_scores
from ad_jobs.scoring.calibration import calibrate_on
from ad_jobs.scoring.held_out import HeldOut
from ad_jobs.scoring.model_store import write_calibration
from models import artifact, registry
from models.detector import InputSpec

SIZE_PX = 32
# Of the archive's multi-frame object.
FRAMES = 5


def make_model(
    folder: Path,
    seed: int = 0,
    size_px: int = SIZE_PX,
    source: str = "test",
    kind: str = "autoencoder",
    tiles: Tiles | None = None,
) -> str:
    """A model with random weights, calibrated on `source`: its scores mean nothing, but are always the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # Of all kinds the quickest to be imported.
        config = registry.configure(kind, {"width": 4} if kind == "autoencoder" else {"weights": "random"})
        spec = InputSpec(channels=3, height_px=size_px, width_px=size_px)
        detector = registry.create(kind, config, spec).eval()
    policy = PixelPolicy(channels=1, height_px=size_px, width_px=size_px, tiles=tiles).model_dump(mode="json")
    model_id = artifact.save(folder, kind, detector, policy, {"seed": seed})
    normal = (np.rint(65535 * picture(number, size_px))[None].astype(np.uint16) for number in range(12))
    # Half of the normals: a good share of an archive is flagged, and a good share is not.
    calibration = calibrate_on(
        detector, map(HeldOut, normal), model_id=model_id, max_fpr=0.5, source=source, tiles=tiles
    )
    write_calibration(str(folder), calibration)
    return str(folder)


def picture(number: int, size: int = 40) -> NDArray[np.float64]:
    """A grey picture [size, size] in [0, 1], different for every number."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:size, 0:size] / size
    waves = np.sin(2 * np.pi * (rng.uniform(1, 5) * x + rng.uniform(1, 5) * y + rng.uniform()))
    return np.clip(0.5 + 0.35 * waves + 0.05 * rng.standard_normal((size, size)), 0, 1)


def png(number: int, size: int = 40) -> bytes:
    """A PNG file of size x size pixels, 16-bit for every fourth number."""
    values = picture(number, size)
    image = (
        Image.fromarray(np.rint(values * 65535).astype(np.uint16))
        if number % 4 == 0
        else Image.fromarray(np.rint(values * 255).astype(np.uint8))
    )
    return _saved(image, "PNG")


def jpeg(number: int) -> bytes:
    """A colour JPEG file."""
    planes = [np.rint(picture(number + shift) * 255).astype(np.uint8) for shift in range(3)]
    return _saved(Image.fromarray(np.stack(planes, -1)), "JPEG")


def tiff(number: int) -> bytes:
    """An 8-bit TIFF file."""
    return _saved(Image.fromarray(np.rint(picture(number) * 255).astype(np.uint8)), "TIFF")


def _saved(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def dicom(number: int, frames: int = 1) -> bytes:
    """An MR image, or a multi-frame capture: 12 bits in 16, MONOCHROME2."""
    return dicom_of(number, frames)


def dicom_of(number: int, frames: int = 1, **elements: Any) -> bytes:
    """The same, with more elements or others."""
    data = dataset(number, MRImageStorage if frames == 1 else MultiFrameGrayscaleWordSecondaryCaptureImageStorage)
    pixels = np.stack([np.rint(picture(number + 1000 * k) * 4095).astype("<u2") for k in range(frames)])
    data.Modality = "MR" if frames == 1 else "OT"
    describe_grey(data, *pixels.shape[1:])
    if frames > 1:
        data.NumberOfFrames = frames
    data.PixelData = pixels.tobytes()
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return written(data)


def describe_grey(data: Dataset, rows: int, columns: int) -> None:
    """Say of `data` that its pixels are 12 bits in 16, MONOCHROME2."""
    data.Rows, data.Columns = rows, columns
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0


def structured_report(number: int) -> bytes:
    """A DICOM object without an image."""
    data = dataset(number, ComprehensiveSRStorage)
    data.Modality = "SR"
    return written(data)


def dataset(number: int, sop_class: str) -> Dataset:
    data = Dataset()
    data.SOPClassUID = sop_class
    for level in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(data, level, generate_uid(entropy_srcs=[level, str(number)]))
    data.StudyDate = "20240229"
    data.PatientName, data.PatientID = "Zzyzx^Planted", "PLANTED-4711"
    return data


def written(data: Dataset, syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """A DICOM file of the data set."""
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def huge_png_header() -> bytes:
    """A PNG that announces 30,000 x 30,000 pixels and holds none."""
    body = b"IHDR" + pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + pack(">I", 13) + body + pack(">I", zlib.crc32(body)) + b"\0" * 64


def good_objects(count: int) -> dict[str, bytes]:
    """`count` images by name: mostly PNG, some JPEG, TIFF and DICOM, one DICOM of several frames."""
    makers = {3: ("jpg", jpeg), 5: ("tif", tiff), 6: ("dcm", dicom)}
    found = {}
    for number in range(count - 1):
        suffix, make = makers.get(number % 8, ("png", png))
        found[f"good/{number:04d}.{suffix}"] = make(number)
    return found | {"good/multi frame #1?.dcm": dicom(count, FRAMES)}


def bad_objects() -> dict[str, tuple[bytes, str]]:
    """Objects that cannot be scored, by name, each with the error code it must get."""
    return {
        "bad/empty.png": (b"", "empty"),
        "bad/huge.png": (huge_png_header(), "too_many_pixels"),
        "bad/report.dcm": (structured_report(1), "not_an_image"),
        "bad/text.png": (b"this is no picture, whatever its name says\n" * 20, "unknown_format"),
        "bad/truncated.dcm": (dicom(9)[:-700], "truncated"),
        "bad/truncated.png": (png(1)[:300], "truncated"),
    }


def write_archive(folder: Path, objects: dict[str, bytes]) -> str:
    """The objects as files; the folder as a SOURCE."""
    for name, data in objects.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(folder)


def table(run: str) -> pd.DataFrame:
    """The score table of a run with one model, as `named`."""
    return named(read_scores(run))


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """One model's rows, indexed by the object's name below `good/` or `bad/` and the frame."""
    name = rows["uri"].str.extract(r"((?:good|bad)/.*)$", expand=False)
    return rows.assign(name=name).set_index(["name", "frame"]).sort_index()


def assert_as_undisturbed(run: str, undisturbed: pd.DataFrame) -> None:
    """The same rows, once each; scores within 1e-5; the same flags, statuses, errors and digests."""
    found = table(run)
    assert not found.index.duplicated().any()
    assert found.index.tolist() == undisturbed.index.tolist()
    # The first of them says of a row that failed why it did.
    reasons = ["status", "error_code", "error_detail"]
    unlike = (found[reasons].fillna("") != undisturbed[reasons].fillna("")).any(axis=1)
    assert not unlike.any(), found.loc[unlike, reasons].to_string()
    np.testing.assert_allclose(found["score"], undisturbed["score"], rtol=0, atol=1e-5)
    for column in ("object_id", "flagged", "status", "error_code", "content_sha256", "bytes"):
        assert found[column].astype(object).where(found[column].notna(), None).tolist() == (
            undisturbed[column].astype(object).where(undisturbed[column].notna(), None).tolist()
        ), column
    assert found["heatmap"].notna().tolist() == undisturbed["heatmap"].notna().tolist()


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flip_byte(path: Path, position: int) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(bytes(data))


@contextmanager
def kept_whole(folder: Path) -> Iterator[Path]:
    """The folder for a block that may change anything in it; after the block it is as it was."""
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)
    yield folder
    shutil.rmtree(folder)
    # With its times: the manifest knows them.
    shutil.copytree(kept, folder)
    shutil.rmtree(kept)


def in_a_process(call: str, **options: Any) -> subprocess.Popen[bytes]:
    """`call`, a statement after `from ad_jobs.scan import scan`, in a process of its own."""
    # The packages need not be installed.
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", f"from ad_jobs.scan import scan; {call}"],
        env={**os.environ, "PYTHONPATH": path},
        **options,
    )


def parts(run: Path) -> Iterator[Path]:
    """The Parquet parts a run has so far."""
    yield from sorted((run / "scores").glob("*.parquet"))
