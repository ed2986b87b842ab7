"""What of a DICOM header reaches a manifest: each column, and nothing that breaks the rules of its representation."""

from __future__ import annotations

import io
import warnings
from typing import Any

import dicomkit as kit
import imagecodecs
import pytest
from dicomkit import COLUMNS, ROWS
from PIL import Image

from ad_jobs.images.decode import read_header
from ad_jobs.images.demographics import age_band, age_years
from ad_jobs.images.sniff import kind_of
from ad_jobs.images.transfer_syntax import is_compressed, is_lossy
from ad_jobs.schema import DEMOGRAPHICS

SYNTAX = "1.2.840.10008.1.2"
# Every attribute that a manifest has a column for, and what the column then holds.
TOLD: dict[str, Any] = {
    "BodyPartExamined": "BREAST",
    "ViewPosition": "MLO",
    "ImageLaterality": "L",
    "ManufacturerModelName": "Model 1",
    "ImageType": ["DERIVED", "SECONDARY", "LOCALIZER"],
    "AcquisitionNumber": "7",
    "InstanceNumber": "-3",
    "PixelSpacing": ["0.5", "0.75"],
    "SliceThickness": "2.5",
    "ImagePositionPatient": ["-1.5", "2", "30"],
    "ImageOrientationPatient": ["1", "0", "0", "0", "0.8", "-0.6"],
    "LossyImageCompression": "00",
    "BurnedInAnnotation": "NO",
}
EXPECTED = {
    "kind": "dicom",
    "study_uid": "1.2.826.0.1.3680043.8.498.2",
    "series_uid": "1.2.826.0.1.3680043.8.498.3",
    "sop_uid": "1.2.826.0.1.3680043.8.498.1",
    "modality": "CT",
    "body_part": "BREAST",
    "view_position": "MLO",
    "laterality": "L",
    "manufacturer": "Maker",
    "model": "Model 1",
    "site": "Hidden Clinic",
    "image_type": "DERIVED\\SECONDARY\\LOCALIZER",
    "acquisition_number": 7,
    "instance_number": -3,
    "rows": ROWS,
    "columns": COLUMNS,
    "frames": 1,
    "bits": 12,
    "photometric": "MONOCHROME2",
    "pixel_spacing": [0.5, 0.75],
    "slice_thickness": 2.5,
    "image_position": [-1.5, 2.0, 30.0],
    "image_orientation": [1.0, 0.0, 0.0, 0.0, 0.8, -0.6],
    "study_month": "2023-05",
    "sop_class": "1.2.840.10008.5.1.4.1.1.2",
    "burned_in": "NO",
    "header_error": None,
}


def made(**attributes: Any) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kit.dicom(kit.ramp(), bits=12, **attributes)


def raw(keyword: str, vr: str, value: bytes) -> bytes:
    return kit.encode(kit.raw(kit.dataset(kit.ramp(), bits=12), keyword, vr, value))


@pytest.mark.parametrize("form", kit.FORMS)
def test_every_column_in_every_form(form: str) -> None:
    found = read_header(kit.in_form(kit.dataset(kit.ramp(), bits=12, **TOLD), form))
    coded = {name: found.pop(name) for name in ("transfer_syntax", "compressed", "lossy")}
    assert found == EXPECTED
    lossy = form in kit.LOSSY
    assert coded == {"transfer_syntax": kit.FORMS[form], "compressed": form not in kit.NATIVE, "lossy": lossy}


def test_what_a_header_does_not_say_is_null() -> None:
    found = read_header(made())
    assert {name for name, value in found.items() if value is None} == {
        *("body_part", "view_position", "laterality", "model", "image_type", "acquisition_number", "instance_number"),
        *("pixel_spacing", "slice_thickness", "image_position", "image_orientation", "burned_in", "header_error"),
    }
    assert found["lossy"] is False


def test_the_laterality_of_a_series_stands_in_for_that_of_an_image() -> None:
    assert read_header(made(Laterality="R"))["laterality"] == "R"
    assert read_header(made(Laterality="R", ImageLaterality="B"))["laterality"] == "B"
    # Of a series there is no other.
    assert read_header(made(Laterality="B"))["laterality"] is None


@pytest.mark.parametrize(
    ("keyword", "value", "column", "wanted"),
    [
        ("Modality", "mr", "modality", None),
        ("Modality", ["MR", "CT"], "modality", None),
        ("BodyPartExamined", "Knee of Jane Doe", "body_part", None),
        ("BodyPartExamined", "SEVENTEEN CHARS X", "body_part", None),
        ("ViewPosition", "DOE^JANE", "view_position", None),
        ("ImageLaterality", "LEFT", "laterality", None),
        ("ImageType", "ORIGINAL", "image_type", "ORIGINAL"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "of Jane Doe", "NORM"], "image_type", "ORIGINAL\\PRIMARY\\\\NORM"),
        ("ImageType", ["of Jane Doe", "born 1970"], "image_type", None),
        ("ImageType", ["A"] * 40, "image_type", "\\".join(["A"] * 16)),
        ("Manufacturer", "x" * 64, "manufacturer", "x" * 64),
        ("Manufacturer", "x" * 65, "manufacturer", None),
        ("Manufacturer", ["Maker", "Doe"], "manufacturer", None),
        ("ManufacturerModelName", "a\x1bb", "model", None),
        ("BurnedInAnnotation", "JANE", "burned_in", None),
        ("StudyInstanceUID", "1.2.Doe", "study_uid", None),
        ("SeriesInstanceUID", ["1.2", "1.3"], "series_uid", None),
        ("SOPClassUID", "Doe^Jane", "sop_class", None),
        ("PixelSpacing", ["0.5"], "pixel_spacing", None),
        ("PixelSpacing", ["0.5", "0"], "pixel_spacing", None),
        ("ImagePositionPatient", ["1", "2"], "image_position", None),
        ("ImageOrientationPatient", ["1"] * 5, "image_orientation", None),
    ],
)
def test_what_breaks_the_rules_of_its_representation_is_left_out(
    keyword: str, value: Any, column: str, wanted: str | None
) -> None:
    found = read_header(made(**{keyword: value}))
    assert found["header_error"] is None
    assert found[column] == wanted


@pytest.mark.parametrize(
    ("keyword", "vr", "value", "column"),
    [
        ("PixelSpacing", "DS", b"1e999\\1.0 ", "pixel_spacing"),
        ("SliceThickness", "DS", b"Jane", "slice_thickness"),
        ("InstanceNumber", "IS", b"2147483648", "instance_number"),
        ("AcquisitionNumber", "IS", b"Doe ", "acquisition_number"),
        # By another representation than its own: bytes, and a name.
        ("Manufacturer", "OB", b"Jane", "manufacturer"),
        ("BodyPartExamined", "PN", b"JANE", "body_part"),
    ],
)
def test_what_is_no_value_at_all_is_left_out(keyword: str, vr: str, value: bytes, column: str) -> None:
    found = read_header(raw(keyword, vr, value))
    assert found["header_error"] is None
    assert found[column] is None


@pytest.mark.parametrize(
    ("tail", "said", "compressed", "lossy"),
    [
        ("", None, False, False),
        (".1", "01", False, True),
        (".1.99", None, False, False),
        (".5", None, True, False),
        (".4.50", None, True, True),
        # Pixels that were lossy once remain so, whatever the attribute says.
        (".4.51", "00", True, True),
        (".4.70", None, True, False),
        (".4.80", None, True, False),
        (".4.81", None, True, True),
        (".4.90", None, True, False),
        (".4.91", None, True, None),
        (".4.91", "00", True, False),
        (".4.91", "01", True, True),
        (".4.102.1", None, True, True),
        (".4.202", None, True, False),
        (".4.203", None, True, None),
    ],
)
def test_compression_by_transfer_syntax_and_attribute(
    tail: str, said: str | None, compressed: bool, lossy: bool | None
) -> None:
    assert is_compressed(SYNTAX + tail) is compressed
    assert is_lossy(SYNTAX + tail, said) is lossy


def test_of_an_unknown_transfer_syntax_only_the_attribute_tells() -> None:
    for unknown in (None, "1.2.840.113619.5.2"):
        assert is_compressed(unknown) is None
        assert [is_lossy(unknown, said) for said in (None, "00", "01")] == [None, False, True]


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(kit.ramp(dtype="u1")).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (made(), "dicom"),
        # Without a preamble.
        (made()[132:], "dicom"),
        *((picture(kind), kind.lower()) for kind in ("PNG", "JPEG", "TIFF")),
        (bytes(imagecodecs.jpeg2k_encode(kit.ramp(dtype="u1"), codecformat="jp2")), "jp2"),
        (bytes(imagecodecs.jpeg2k_encode(kit.ramp(dtype="u1"), codecformat="j2k")), "jp2"),
        (b"", "other"),
        (b"a,b\n1,2\n", "other"),
    ],
)
def test_kind_is_what_the_bytes_are(data: bytes, kind: str) -> None:
    assert kind_of(data[:4096]) == kind
    assert read_header(data)["kind"] == kind


# --- Demographics


@pytest.mark.parametrize(
    ("values", "years"),
    [
        ({"PatientAge": "034Y"}, 34),
        ({"PatientAge": "34Y"}, 34),
        ({"PatientAge": "023M"}, 1),
        ({"PatientAge": "104W"}, 1),
        ({"PatientAge": "105W"}, 2),
        ({"PatientAge": "366D"}, 1),
        ({"PatientAge": "090Y", "PatientBirthDate": "20000101", "StudyDate": "20230517"}, 90),
        ({"PatientBirthDate": "19700517", "StudyDate": "20230517"}, 53),
        ({"PatientBirthDate": "19700518", "StudyDate": "20230517"}, 52),
        ({"PatientBirthDate": "1970.05.18", "StudyDate": "20230518"}, 53),
        ({"PatientAge": "old", "PatientBirthDate": "19700518", "StudyDate": "20230518"}, 53),
        ({"PatientBirthDate": "20240101", "StudyDate": "20230517"}, None),
        ({"PatientBirthDate": "19700230", "StudyDate": "20230517"}, None),
        ({"PatientBirthDate": "19700101"}, None),
        ({"PatientAge": None, "StudyDate": "20230517"}, None),
    ],
)
def test_completed_years_at_the_study(values: dict[str, Any], years: int | None) -> None:
    assert age_years(values) == years


def test_bands_are_of_five_years_and_the_oldest_are_one() -> None:
    bands = [age_band(years) for years in range(130)]
    assert list(dict.fromkeys(bands)) == [*(f"{first:02}-{first + 4:02}" for first in range(0, 90, 5)), "90+"]
    assert [bands[years] for years in (0, 4, 5, 89, 90, 129)] == ["00-04", "00-04", "05-09", "85-89", "90+", "90+"]


@pytest.mark.parametrize("form", kit.NATIVE)
def test_demographics_are_there_if_they_are_asked_for(form: str) -> None:
    data = kit.in_form(kit.dataset(kit.ramp(), PatientBirthDate="19700102", PatientSex="F"), form)
    assert not set(read_header(data)) & set(DEMOGRAPHICS.names)
    found = read_header(data, demographics=True)
    assert {name: found[name] for name in DEMOGRAPHICS.names} == {"age_band": "50-54", "sex": "F"}


@pytest.mark.parametrize("sex", ["FEMALE", "f", "", "Jane"])
def test_a_sex_is_one_of_three_or_none(sex: str) -> None:
    assert read_header(made(PatientSex=sex), demographics=True)["sex"] is None
