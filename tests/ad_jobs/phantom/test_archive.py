"""The phantom archive: reproducible, labelled, varied, with all its identifiers and bad files."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from ad_jobs.errors import ImageError, UsageError
from ad_jobs.evaluation.labels import read_labels
from ad_jobs.images.decode import decode
from ad_jobs.images.model_input import to_input
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.phantom import PhantomArchive, generate
from ad_jobs.phantom.codecs import ENCAPSULATED
from ad_jobs.phantom.scanners import SCANNERS

SIZES = {
    "train": 24,
    "calibration": 6,
    "normals": 22,
    "anomalous": 14,
    "multiframe": 4,
    "broken": 6,
    "non_images": 3,
    "size_px": 64,
}
POLICY = PixelPolicy(channels=1, height_px=64, width_px=64)
IDENTIFYING = [
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "AccessionNumber",
    "PatientComments",
    "InstitutionalDepartmentName",
    "ReferringPhysicianName",
    "StudyDescription",
    "OtherPatientIDs",
    "OperatorsName",
    "StudyDate",
]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> PhantomArchive:
    return generate(tmp_path_factory.mktemp("phantom"), seed=3, **SIZES)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files(folder)}


def labels(phantom: PhantomArchive) -> list[dict[str, str]]:
    with phantom.labels.open(newline="") as file:
        return list(csv.DictReader(file))


def good_dicoms(phantom: PhantomArchive) -> list[Path]:
    archive = [phantom.root / name for name in sorted({row["image"] for row in labels(phantom)})]
    return files(phantom.train) + files(phantom.calibration) + archive


def test_the_same_seed_gives_the_same_bytes(phantom: PhantomArchive, tmp_path: Path) -> None:
    again = generate(tmp_path / "again", seed=3, **SIZES)
    assert digests(again.root) == digests(phantom.root)
    assert again.planted == phantom.planted
    other = generate(tmp_path / "other", seed=4, **SIZES)
    mine, theirs = digests(phantom.train), digests(other.train)
    assert mine.keys() == theirs.keys()
    assert not set(mine.values()) & set(theirs.values())


def test_a_patient_does_not_depend_on_how_many_there_are(phantom: PhantomArchive, tmp_path: Path) -> None:
    fewer = generate(tmp_path / "fewer", seed=3, **{**SIZES, "train": 7, "normals": 0, "anomalous": 0})
    mine, theirs = digests(phantom.train), digests(fewer.train)
    assert len(theirs) == 7
    assert theirs.items() <= mine.items()


def test_there_is_what_was_asked_for(phantom: PhantomArchive) -> None:
    assert len(files(phantom.train)) == SIZES["train"]
    assert len(files(phantom.calibration)) == SIZES["calibration"]
    assert phantom.images == SIZES["normals"] + SIZES["anomalous"] + SIZES["multiframe"]
    assert len(phantom.expected) == SIZES["broken"] + SIZES["non_images"]
    assert len(files(phantom.archive)) == phantom.objects
    assert phantom.frames == SIZES["normals"] + SIZES["anomalous"] + 4 * SIZES["multiframe"]
    assert phantom.anomalous == SIZES["anomalous"] + 2 * (SIZES["multiframe"] // 2)


def test_labels_name_every_good_frame_once(phantom: PhantomArchive) -> None:
    rows = labels(phantom)
    assert len(rows) == phantom.frames
    assert len({(row["image"], row["frame"]) for row in rows}) == phantom.frames
    assert sum(int(row["anomalous"]) for row in rows) == phantom.anomalous
    images = {row["image"] for row in rows}
    bad = {f"archive/{name}" for name in phantom.expected}
    assert images | bad == {str(path.relative_to(phantom.root)) for path in files(phantom.archive)}
    assert not images & bad
    for image in images:
        frames = sorted(int(row["frame"]) for row in rows if row["image"] == image)
        assert frames == list(range(int(pydicom.dcmread(phantom.root / image).get("NumberOfFrames", 1))))


def test_labels_are_readable_by_evaluate(phantom: PhantomArchive) -> None:
    table = read_labels(str(phantom.labels)).table
    assert len(table) == phantom.frames
    assert table.anomalous.sum() == phantom.anomalous
    assert all(Path(uri).is_file() for uri in [*table.uri, *table["mask"].dropna()])


def test_masks_have_the_size_of_their_image_and_mark_a_part_of_it(phantom: PhantomArchive) -> None:
    marked = [row for row in labels(phantom) if row["anomalous"] == "1"]
    assert {row["mask"] for row in labels(phantom) if row["anomalous"] == "0"} == {""}
    assert len({row["mask"] for row in marked}) == len(marked) == len(files(phantom.root / "masks"))
    for row in marked:
        header = pydicom.dcmread(phantom.root / row["image"], stop_before_pixels=True)
        mask = np.asarray(Image.open(phantom.root / row["mask"]))
        assert mask.shape == (header.Rows, header.Columns)
        assert set(np.unique(mask)) == {0, 255}
        assert 0.002 < (mask > 0).mean() < 0.25


def test_patients_are_groups_of_one_split(phantom: PhantomArchive) -> None:
    patients = {
        name: {pydicom.dcmread(path).PatientID for path in files(folder)}
        for name, folder in (("train", phantom.train), ("calibration", phantom.calibration))
    }
    by_group: dict[str, set[str]] = {}
    for row in labels(phantom):
        header = pydicom.dcmread(phantom.root / row["image"], stop_before_pixels=True)
        by_group.setdefault(row["group"], set()).add(header.PatientID)
    assert all(len(ids) == 1 for ids in by_group.values())
    patients["archive"] = set().union(*by_group.values())
    assert len(patients["archive"]) == len(by_group) > 5
    assert sum(map(len, patients.values())) == len(set().union(*patients.values()))


def texts(path: Path) -> str:
    """All that a file says, uncompressed."""
    raw = path.read_bytes()
    said = raw.decode("latin-1")
    if raw[128:132] == b"DICM":
        said += "".join(f"{element.value}\n" for element in pydicom.dcmread(path, force=True).iterall())
    return said


def test_every_planted_identifier_stands_in_the_files(phantom: PhantomArchive) -> None:
    said = "".join(texts(path) for top in ("train", "calibration", "archive") for path in files(phantom.root / top))
    assert [word for word in phantom.planted if word not in said] == []
    assert len(set(phantom.planted)) == len(phantom.planted) > 100
    assert min(map(len, phantom.planted)) >= 8
    assert phantom.planted_file.read_text().split() == phantom.planted
    assert phantom.archive not in phantom.planted_file.parents


def test_every_file_names_its_patient(phantom: PhantomArchive) -> None:
    planted = tuple(phantom.planted)
    for path in good_dicoms(phantom):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        for keyword in IDENTIFYING:
            assert any(word in str(header[keyword].value) for word in planted), (path, keyword)
        private = "".join(str(element.value) for element in header if element.tag.is_private)
        assert sum(word in private for word in planted) == 2, path
    for name, code in phantom.expected.items():
        found = any(word in texts(phantom.archive / name) for word in planted)
        assert found == (code != "empty"), name


def test_no_name_of_a_file_and_no_label_holds_an_identifier(phantom: PhantomArchive) -> None:
    names = "\n".join(str(path.relative_to(phantom.root)) for path in files(phantom.root))
    visible = names + phantom.labels.read_text()
    assert [word for word in phantom.planted if word in visible] == []


def test_bad_objects_get_the_code_that_is_expected(phantom: PhantomArchive) -> None:
    for name, code in phantom.expected.items():
        with pytest.raises(ImageError) as caught:
            decode((phantom.archive / name).read_bytes(), POLICY, Limits())
        assert str(caught.value.code) == code, name
        assert not [word for word in phantom.planted if word in caught.value.detail]
    assert set(phantom.expected.values()) == {
        "truncated",
        "empty",
        "unknown_format",
        "too_many_pixels",
        "corrupt",
        "unsupported_image",
        "not_an_image",
    }


def test_scanners_differ_in_all_that_a_reader_can_get_wrong(phantom: PhantomArchive) -> None:
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in good_dicoms(phantom)]
    syntaxes = {str(header.file_meta.TransferSyntaxUID) for header in headers}
    assert syntaxes >= {*ENCAPSULATED, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian}
    assert {header.PhotometricInterpretation for header in headers} == {"MONOCHROME1", "MONOCHROME2"}
    assert len({(float(h.RescaleSlope), float(h.RescaleIntercept)) for h in headers}) >= 3
    assert len({str(header.WindowCenter) for header in headers}) >= 4
    assert len({(header.Rows, header.Columns) for header in headers}) >= 3
    assert any(header.Rows != header.Columns for header in headers)
    assert {(header.BitsAllocated, header.BitsStored) for header in headers} == {(16, 12)}
    assert len({header.StudyInstanceUID for header in headers}) > 10
    assert len({header.SOPInstanceUID for header in headers}) == len(headers)


def test_all_scanners_pictures_look_alike_once_read(phantom: PhantomArchive) -> None:
    looks: dict[str, list[tuple[float, float]]] = {}
    for path in files(phantom.train):
        decoded = decode(path.read_bytes(), POLICY, Limits())
        picture = to_input(decoded.frames[0].pixels, 1)[0]
        corners = np.concatenate([picture[:5, :5].ravel(), picture[-5:, -5:].ravel()])
        key = str(decoded.header["manufacturer"])
        looks.setdefault(key, []).append((float(corners.mean()), float(np.percentile(picture, 85))))
    assert set(looks) == {scanner.manufacturer for scanner in SCANNERS}
    for air, tissue in (np.mean(look, axis=0) for look in looks.values()):
        assert air < 0.06
        assert 0.4 < tissue < 0.75


def test_stored_values_use_twelve_bits(phantom: PhantomArchive) -> None:
    for path in files(phantom.train)[::5]:
        pixels = pydicom.dcmread(path).pixel_array
        assert 1000 < np.ptp(pixels) <= 4095
        assert pixels.max() <= 4095


def test_an_archive_is_not_written_over_anything(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="empty folder"):
        generate(tmp_path, **SIZES)
    with pytest.raises(UsageError, match="empty folder"):
        generate(tmp_path / "mine.txt", **SIZES)
    assert (tmp_path / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("change", [{"normals": -1}, {"seed": -1}, {"size_px": 8}])
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path: Path, change: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="0 or more"):
        generate(tmp_path / "new", **{**SIZES, **change})
    assert not (tmp_path / "new").exists()
