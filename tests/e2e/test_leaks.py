"""Nothing that a run with hashed identifiers leaves or says names an object, a patient or a place of the archive."""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin
from pydicom.dataset import Dataset
from scankit import describe_grey, dicom, make_model, png, written

from ad_jobs.archive.identifiers import BESIDE
from ad_jobs.calibrate import calibrate
from ad_jobs.index import index
from ad_jobs.results.read import read_run, read_scores
from cluster import storage

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
# Stands in every text that names somebody, and in nothing else.
PLANTED = "Zzyzx"
KEY = b"a secret of this test"
STUDY = "1.2.826.0.1.4711.99"
SITE = f"{PLANTED} Hospital"


def picture(kind: str) -> bytes:
    """A picture with a name in its texts."""
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    file = io.BytesIO()
    if kind == "PNG":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("Author", f"{PLANTED} in tEXt")
        texts.add_itxt("Comment", f"{PLANTED} in iTXt")
        image.save(file, kind, pnginfo=texts)
    elif kind == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[270], tags[315], tags[65000] = f"{PLANTED} described", f"{PLANTED} artist", f"{PLANTED} private"
        image.save(file, kind, tiffinfo=tags)
    else:
        exif = Image.Exif()
        exif[0x010E], exif[0x8298], exif[0x9286] = f"{PLANTED} described", f"{PLANTED} rights", f"{PLANTED} comment"
        image.save(file, kind, exif=exif, comment=f"{PLANTED} comment".encode())
    return file.getvalue()


def named_dicom() -> bytes:
    """An MR image with a name wherever a header has room for one."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", STUDY + ".2"
    data.StudyInstanceUID, data.SeriesInstanceUID = STUDY, STUDY + ".1"
    data.PatientName, data.PatientID, data.AccessionNumber = f"{PLANTED}^A", f"{PLANTED}-1", f"{PLANTED}A"
    data.StudyDescription = data.StationName = data.PatientComments = f"{PLANTED} said"
    data.InstitutionName = SITE
    private = data.private_block(0x0011, f"{PLANTED} maker", create=True)
    private.add_new(0x01, "LO", f"{PLANTED} private")
    data.Modality = "MR"
    describe_grey(data, 4, 4)
    data.PixelData = bytes(range(0, 64, 2))
    return written(data)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{PLANTED}/{PLANTED}.png", png(1))
        archive.comment = PLANTED.encode()
    return file.getvalue()


def objects() -> dict[str, bytes]:
    """Objects by name, whole and broken: what is wrong with one is told, and must not name it."""
    whole = {f"{kind.lower()}.{kind.lower()}": picture(kind) for kind in ("PNG", "TIFF", "JPEG")}
    whole |= {"named.dcm": named_dicom(), "plain.dcm": dicom(1), "archive.zip": zipped(), "text": PLANTED.encode() * 50}
    cut = {f"cut-{name}": data[: len(data) * 3 // 4] for name, data in whole.items()}
    spoiled = {f"spoiled-{name}": data[:-40] + b"\xff" * 40 for name, data in whole.items()}
    found = whole | cut | spoiled | {"gone.png": png(2), "replaced.png": png(3)}
    return {f"{PLANTED}^folder/{PLANTED} {name}": data for name, data in found.items()}


class Place(NamedTuple):
    source: str
    out: Path


def indexed(source: str, out: Path, key: Path) -> None:
    """The run's manifest, with headers, under the key."""
    key.write_bytes(KEY)
    index(source, f"{out}{BESIDE}", headers=True, identifiers="hashed", identifiers_key=key)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """The planted archive, with a manifest that knows of objects that are gone since."""
    out = tmp_path / "run"
    if request.param == "s3":
        s3 = request.getfixturevalue("s3")
        for name, data in objects().items():
            s3.put(f"leaks-{PLANTED}/{name}", data)
        source = s3.uri(f"leaks-{PLANTED}")
        indexed(source, out, tmp_path / "key")
        for name in ("gone", "replaced"):
            storage.delete(f"{source}/{PLANTED}^folder/{PLANTED} {name}.png")
        return Place(source, out)
    folder = tmp_path / f"{PLANTED}-archive" / f"{PLANTED}^folder"
    folder.mkdir(parents=True)
    for name, data in objects().items():
        (folder.parent / name).write_bytes(data)
    indexed(str(folder.parent), out, tmp_path / "key")
    (folder / f"{PLANTED} gone.png").unlink()
    (folder / f"{PLANTED} replaced.png").unlink()
    (tmp_path / f"{PLANTED} elsewhere").write_bytes(png(4))
    (folder / f"{PLANTED} replaced.png").symlink_to(tmp_path / f"{PLANTED} elsewhere")
    return Place(str(folder.parent), out)


def retroscan(ray: Path, *words: str | Path) -> str:
    """What a verb says, on stdout and stderr."""
    command = [sys.executable, str(ROOT / "tests" / "watched_ray.py"), str(ray), *map(str, words)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # Ray's C++ side, too, shall say all that it has to say.
    env = os.environ | {"PYTHONPATH": path, "RAY_BACKEND_LOG_LEVEL": "info", "RAY_metrics_report_interval_ms": "500"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def labels_of(place: Place, folder: Path) -> Path:
    """Labels by the run's names, in a file that names somebody."""
    rows = read_scores(str(place.out))
    names = rows.loc[rows["status"] == "scored", "uri"].unique()
    labels = folder / f"{PLANTED} labels.csv"
    labels.write_text("image,anomalous\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(names)))
    return labels


def texts(folder: Path) -> dict[str, str]:
    """Everything below a folder as text: tables unpacked, other files as they are; names of files, too."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.suffix == ".parquet":
            found[name] = str(pq.read_table(path).to_pylist()) + str(pq.read_schema(path).metadata)
        elif path.is_file():
            found[name] = path.read_bytes().decode("latin-1")
    return found


def test_nothing_below_a_hashed_run_or_in_its_logs_names_anybody(place: Place, tmp_path: Path) -> None:
    model, key = make_model(tmp_path / "model"), tmp_path / "key"
    calibrate(model=model, normal=place.source, max_fpr=0.9, identifiers="hashed", identifiers_key=key)
    # A unix socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp") as ray:
        hashed = ("--identifiers", "hashed", "--identifiers-key", key)
        scan = (
            "scan",
            place.source,
            "--model",
            model,
            "--out",
            place.out,
            *hashed,
            "--where",
            f"uri LIKE '%{PLANTED}%'",
        )
        said = [
            retroscan(Path(ray), *scan, "--json"),
            # Once more: the run is found again, without its request being in it.
            retroscan(Path(ray), *scan),
            retroscan(Path(ray), "evaluate", place.out, "--labels", labels_of(place, tmp_path)),
            retroscan(Path(ray), "decide", place.out, "--max-fpr", "0.9", "--by", "site", "--level", "study"),
            retroscan(Path(ray), "report", place.out),
            retroscan(Path(ray), "verify", place.out, "--identifiers-key", key),
        ]
        logs = texts(Path(ray))
    left = texts(place.out)
    assert len(left) > 3
    assert any("retroscan_objects_total" in text for text in logs.values())
    for name, text in [*left.items(), *logs.items(), *(("said", text) for text in said)]:
        assert PLANTED not in name + text, f"{name}: {text[max(0, text.find(PLANTED) - 200) :][:400]}"
        assert STUDY not in text, name
    rows = read_scores(str(place.out))
    assert set(rows["status"]) == {"scored", "failed"}
    assert (rows["error_code"] == "not_found").sum() == 2
    study, site = ("hmac:" + hmac.new(KEY, name.encode(), hashlib.sha256).hexdigest()[:32] for name in (STUDY, SITE))
    assert study in set(rows["study_uid"])
    (decided,) = (pq.read_table(path).to_pandas() for path in (place.out / "decisions").glob("*.parquet"))
    assert set(decided["site"].dropna()) == {site}
    record = read_run(str(place.out))
    assert record.source.startswith("hmac:")
    assert record.manifest.uri.startswith("hmac:")
    assert "source" not in record.config
    assert "where" not in record.config
