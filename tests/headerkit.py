"""An archive of images, pictures and broken objects, and what `index --headers` makes of it."""

from __future__ import annotations

import io
from typing import Any

import dicomkit as kit
from PIL import Image

from ad_jobs.archive.manifest import read_manifest
from ad_jobs.schema import MANIFEST_HEADERS
from cluster import storage

KEY = b"a secret of these tests"
PERSON = {"PatientSex": "F", "PatientAge": "047Y", "PatientComments": "Secret comment", "PatientAddress": "Secret road"}


def dicom(modality: str = "MR", *, private_bytes: int = 0, **attributes: Any) -> bytes:
    """An image in whose header a private element of so many bytes stands before its size."""
    ds = kit.dataset(kit.ramp(), bits=12, Modality=modality, **PERSON, **attributes)
    if private_bytes:
        ds.private_block(0x0009, "RETROSCAN TEST", create=True).add_new(0x01, "OB", bytes(private_bytes))
    return kit.encode(ds)


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(kit.ramp(dtype="u1")).save(file, kind)
    return file.getvalue()


OBJECTS = {
    "one/a.dcm": dicom(ImageType=["ORIGINAL", "PRIMARY"]),
    "one/b": dicom("CT", private_bytes=700_000, ImageType=["DERIVED", "SECONDARY", "LOCALIZER"]),
    "one/c.txt": b"no image",
    "two/d.dcm": dicom()[:300],
    "two/e.dcm": b"",
    "two/f": picture("PNG"),
    "two/g": picture("JPEG"),
    "two/h": picture("TIFF"),
}
NAMES = list(OBJECTS)


def files(folder: str) -> dict[str, bytes]:
    return {name: storage.read_bytes(f"{folder}/{name}") for name in storage.list_names(folder)}


def parts(folder: str) -> dict[str, bytes]:
    return {name: data for name, data in files(folder).items() if name != "manifest.json"}


def check_columns(uri: str, archive: str) -> None:
    table = read_manifest(uri)
    assert table.schema.equals(MANIFEST_HEADERS)
    rows = table.to_pylist()
    assert [row["kind"] for row in rows] == ["dicom", "dicom", "other", "dicom", "other", "png", "jpeg", "tiff"]
    assert [row["group"] for row in rows] == [f"{archive}/one"] * 3 + [f"{archive}/two"] * 5
    told = {"modality": "MR", "rows": kit.ROWS, "bits": 12, "compressed": False, "image_type": "ORIGINAL\\PRIMARY"}
    assert {name: rows[0][name] for name in told} == told
    assert rows[0]["study_uid"] == "1.2.826.0.1.3680043.8.498.2"
    assert (rows[1]["modality"], rows[1]["columns"]) == ("CT", kit.COLUMNS)
    of_the_bytes = set(MANIFEST_HEADERS.names[5:]) - {"group", "kind"}
    for number in (2, 4, 5, 6, 7):
        assert {rows[number][name] for name in of_the_bytes} == {None}
    # Cut short within its header: what is there is told.
    assert (rows[3]["rows"], rows[3]["header_error"]) == (None, None)
