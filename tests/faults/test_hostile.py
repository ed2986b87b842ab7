"""Objects that cost too much: each becomes a row with its reason, and none makes a scan end or stall."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

import dicomkit
import imagecodecs
import numpy as np
import pytest
import scankit as kit
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from ad_jobs.scan import scan
from ad_jobs.scanning import pipeline
from cluster import session
from cluster.division import ScanDivision

pytestmark = pytest.mark.ray


def bomb() -> bytes:
    """A kilobyte of DICOM whose code stream announces 20,000 x 20,000 pixels."""
    code = bytearray(
        imagecodecs.jpeg2k_encode(np.zeros((16, 16), np.uint8), codecformat="j2k", reversible=True, level=0)
    )
    struct.pack_into(">LL", code, 8, 20_000, 20_000)
    ds = dicomkit.dataset(np.zeros((16, 16), np.uint8))
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.PixelData = encapsulate([bytes(code)])
    return dicomkit.encode(ds)


def endless() -> bytes:
    """Fifty kilobytes that take many seconds: fifty thousand frames, each blown up to the input's size."""
    return dicomkit.dicom(
        np.zeros((50_000, 1, 1), np.uint8), VOILUTFunction="SIGMOID", WindowCenter="1", WindowWidth="3"
    )


def test_a_block_that_outlasts_the_watch_is_finished_row_by_row(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All in one task, which takes longer than nothing may move for otherwise.
    monkeypatch.setattr(session, "NO_PROGRESS_TIMEOUT_S", 10.0)

    def one_task(left: int, division: ScanDivision) -> int:  # noqa: ARG001
        return left

    monkeypatch.setattr(pipeline, "block_rows", one_task)
    slow = endless()
    objects = {f"slow {number}.dcm": slow for number in range(8)}
    objects |= {f"bomb {number}.dcm": bomb() for number in range(4)} | kit.good_objects(4)
    archive = kit.write_archive(tmp_path / "archive", objects)
    out = str(tmp_path / "run")
    limits = {"timeout_s": 2.0, "max_frames": 100_000}
    scan(archive, [model], out, batch_size=8, num_cpus=2, limits=limits)
    rows = kit.table(out)
    of_objects = rows.drop_duplicates("object_id")
    assert len(of_objects) == len(objects)
    found = Counter(of_objects["error_code"].fillna("scored"))
    assert found == {"decode_timeout": 8, "too_many_pixels": 4, "scored": 4}
