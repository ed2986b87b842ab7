"""A finished run over DICOM objects and pictures, where what is bright in a frame is hot in its heatmap."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import fake_run
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from dicomkit import dataset, item
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, MRImageStorage, MultiFrameGrayscaleWordSecondaryCaptureImageStorage

from ad_jobs.archive.fetching import status_of
from ad_jobs.deciding.record import record_of, table_of
from ad_jobs.deciding.stacks import STACK_DECISIONS
from ad_jobs.deciding.table import DECISIONS
from ad_jobs.errors import ImageError
from ad_jobs.images.decode import decode
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.delivery import digest_of
from ad_jobs.results.heatmaps import encode_png, member_name, pack
from ad_jobs.results.run import read_record
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.results.seal import sealed
from ad_jobs.schema import SCORES

MODEL = fake_run.MODEL
ROOT = "1.2.826.0.1.3680043.8.498"
STUDY, FRAME_OF_REFERENCE = f"{ROOT}.2", f"{ROOT}.9"
ROWS, COLUMNS = 40, 64
# The bright square's first row and column, and its side.
SQUARE = (24, 10, 6)
# Turned about two axes, so that no row runs along one.
TURNED = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)
POSITION, SPACING = (-31.5, 12.25, 70.0), (0.75, 1.5)

judged = pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed (Debian)")


def pixels(square: tuple[int, int, int] = SQUARE, levels: int = 4000) -> npt.NDArray[np.uint16]:
    """A dim ramp with a bright square."""
    found = np.linspace(0, levels / 5, ROWS * COLUMNS).reshape(ROWS, COLUMNS).astype(np.uint16)
    top, left, side = square
    found[top : top + side, left : left + side] = levels
    return found


def slice_of(number: int = 1, array: npt.NDArray[Any] | None = None, study: str = STUDY, **changed: Any) -> Dataset:
    """An MR slice that lies askew in the patient, of which names are known; None leaves an attribute out."""
    geometry = {
        "FrameOfReferenceUID": FRAME_OF_REFERENCE,
        "ImagePositionPatient": list(POSITION),
        "ImageOrientationPatient": list(TURNED),
        "PixelSpacing": list(SPACING),
        "SliceThickness": 3,
    }
    return dataset(
        pixels() if array is None else array,
        **{
            "bits": 12,
            "SOPClassUID": MRImageStorage,
            "SOPInstanceUID": f"{ROOT}.1.{number}",
            "StudyInstanceUID": study,
            "Modality": "MR",
            "PatientSex": "F",
            "StudyTime": "101500",
            "StudyID": "S1",
            "ReferringPhysicianName": "",
            **{name: value for name, value in {**geometry, **changed}.items() if value is not None},
            **{name: None for name in changed if changed[name] is None and name not in geometry},
        },
    )


def enhanced(squares: list[tuple[int, int, int]]) -> Dataset:
    """An enhanced MR object, a frame a square, whose places in the patient stand in functional groups."""
    made = slice_of(50, np.stack([pixels(square) for square in squares]))
    made.SOPClassUID = EnhancedMRImageStorage
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(made, name)
    made.SharedFunctionalGroupsSequence = Sequence(
        [
            item(
                PixelMeasuresSequence=Sequence([item(PixelSpacing=list(SPACING), SliceThickness=3)]),
                PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=list(TURNED))]),
            )
        ]
    )
    made.PerFrameFunctionalGroupsSequence = Sequence(
        [
            item(PlanePositionSequence=Sequence([item(ImagePositionPatient=list(position_of(n)))]))
            for n in range(len(squares))
        ]
    )
    return made


def position_of(frame: int) -> tuple[float, float, float]:
    """Where a frame of `enhanced` begins."""
    return POSITION[0], POSITION[1], POSITION[2] + 4.0 * frame


def plain_frames(squares: list[tuple[int, int, int]]) -> Dataset:
    """A multi-frame Secondary Capture, which lies nowhere."""
    made = slice_of(60, np.stack([pixels(square) for square in squares]))
    made.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    for name in ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness"):
        delattr(made, name)
    return made


def run_over(
    folder: Path,
    objects: dict[str, bytes],
    *,
    flagged: bool | set[str] = True,
    models: tuple[str, ...] = (MODEL,),
    heatmaps: bool = True,
    resize: str = "pad",
) -> str:
    """A run that has scored every frame of these objects, by their names; what cannot be decoded failed."""
    policy = PixelPolicy(channels=1, height_px=48, width_px=32, resize=resize)
    archive, run = folder / "archive", folder / "run"
    (run / "scores").mkdir(parents=True)
    archive.mkdir()
    rows: list[dict[str, Any]] = []
    members: dict[str, bytes] = {}
    for object_id, (name, data) in enumerate(sorted(objects.items())):
        path = archive / name
        path.write_bytes(data)
        known = {"content_sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        try:
            decoded = decode(data, policy, Limits())
        except ImageError as error:
            for model_id in models:
                told = {"status": status_of(error.code), "error_code": str(error.code), "model_id": model_id, **known}
                rows.append(fake_run.row(object_id, str(path), **told))
            continue
        header = {name: value for name, value in decoded.header.items() if name in SCORES.names}
        for frame in decoded.frames:
            for model_id in models:
                member = member_name(object_id, frame.index, model_id if len(models) > 1 else None)
                members[member] = encode_png(frame.pixels.mean(axis=0) / 65535, frame.geometry)
                score = 0.9 - object_id / 100 - frame.index / 1000
                is_flagged = flagged if isinstance(flagged, bool) else name in flagged
                told = {"status": "scored", "score": score, "threshold": 0.5 if is_flagged else 1.0, **known, **header}
                told |= {"flagged": is_flagged, "heatmap": member, "model_id": model_id, "frame": frame.index}
                rows.append(fake_run.row(object_id, str(path), **told))
    if heatmaps:
        (run / "heatmaps").mkdir()
        shard = pack(members.items())
        (run / shard.name).write_bytes(shard.data)
    for row in rows:
        row["heatmap"] = shard.reference(row["heatmap"]) if heatmaps and row["heatmap"] else None
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORES), run / "scores" / "part-00000.parquet")
    fake_run.close(str(run), list(models), policy, 0.5, len(objects))
    return str(run)


def index_of(out: Path | str) -> list[dict[str, str]]:
    """The rows of an export's index."""
    with Path(out, "index.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(out: Path | str) -> list[Dataset]:
    """The DICOM objects of an export, by their names."""
    return [pydicom.dcmread(path) for path in sorted(Path(out).glob("*.dcm"))]


def complaints(path: Path) -> list[str]:
    """The errors that dciodvfy finds in a file."""
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace", timeout=60)
    return [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("Error")]


def decided(run: str, flagged: set[tuple[int, int]], level: str = "image", threshold: float | None = 0.75) -> str:
    """A decision beside the run that flagged these objects and frames, or at the level `study` the studies of them."""
    record = read_record(run)
    rows = (
        ScoreTable(run, record)
        .rows([*DECISIONS.names[:4], "study_uid", "uri", "heatmap"], "status = 'scored'")
        .to_pylist()
    )
    rows.sort(key=lambda row: (row["model_id"], -row["score"]))
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        known = {name: row[name] for name in ("object_id", "frame", "model_id", "score", "heatmap")}
        is_flagged = (row["object_id"], row["frame"]) in flagged
        group = row["study_uid"] or row["uri"].rpartition("/")[0]
        key = group if level == "study" else (row["object_id"], row["frame"])
        of_key = found.setdefault((row["model_id"], key), {**known, "frames": 0, "flagged_frames": 0, "flagged": False})
        of_key |= {"p": 0.25, "q": 0.5, "group": group, "mean_top": of_key["score"]}
        of_key["frames"] += 1
        of_key["flagged"] |= is_flagged
    for model_id in {row["model_id"] for row in rows}:
        of_model = [one for one in found.values() if one["model_id"] == model_id]
        for rank, one in enumerate(of_model, 1):
            one["rank"] = rank
    decision_id = hashlib.sha256(repr((sorted(flagged), level)).encode()).hexdigest()[:12]
    path = Path(table_of(run, decision_id))
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(found.values()), STACK_DECISIONS if level == "study" else DECISIONS), path)
    content = {
        "version": 1,
        "decision_id": decision_id,
        "run_id": record.run_id,
        "run_digest": record.digest,
        "level": level,
        "models": [{"model_id": model.model_id, "threshold": threshold} for model in record.models],
        "sha256": digest_of(str(path)),
        "decided_at": "2025-03-05T08:00:00+00:00",
    }
    Path(record_of(run, decision_id)).write_text(json.dumps(sealed(content, None)))
    return decision_id


def table_rows(run: str) -> list[dict[str, Any]]:
    """The rows of a run's table."""
    found: list[dict[str, Any]] = ScoreTable(run, read_record(run)).rows(SCORES.names).to_pylist()
    return found
