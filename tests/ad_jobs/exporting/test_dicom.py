"""What is derived for a PACS: valid, filed with its source, and lying where the defect is."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import exportkit as kit
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from dcmtk import needed as dcmtk_needed
from dicomkit import SECRETS, compressed, dataset, encode
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, VLPhotographicImageStorage

from ad_jobs.export import export
from ad_jobs.reviewing.verdicts import Verdict, add
from ad_jobs.schema import SCORES

OTHER = (4, 40, 6)


def exported(folder: Path, form: str, *sources: Dataset | bytes, **options: Any) -> list[Dataset]:
    """What is derived of these objects, in one format."""
    objects = {f"{n:02}.dcm": one if isinstance(one, bytes) else encode(one) for n, one in enumerate(sources)}
    run = kit.run_over(folder, objects, **options)
    export(run=run, out=str(folder / form), format=form)
    return kit.written(folder / form)


def in_patient(position: Any, orientation: Any, spacing: Any, row: float, column: float) -> NDArray[np.float64]:
    """Where a pixel's centre lies in mm, PS3.3 C.7.6.2.1.1."""
    along_row, along_column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    return np.array(position, float) + along_row * float(spacing[1]) * column + along_column * float(spacing[0]) * row


def hottest(ds: Dataset) -> NDArray[np.float64]:
    """Where the middle of a map's hottest pixels lies in the patient, by what the map says of itself."""
    shared, frame = ds.SharedFunctionalGroupsSequence[0], ds.PerFrameFunctionalGroupsSequence[0]
    values = np.frombuffer(ds.FloatPixelData, "<f4").reshape(ds.Rows, ds.Columns)
    rows, columns = np.nonzero(values >= 0.95 * values.max())
    return in_patient(
        frame.PlanePositionSequence[0].ImagePositionPatient,
        shared.PlaneOrientationSequence[0].ImageOrientationPatient,
        shared.PixelMeasuresSequence[0].PixelSpacing,
        rows.mean(),
        columns.mean(),
    )


def middle_of(square: tuple[int, int, int], position: Any = kit.POSITION) -> NDArray[np.float64]:
    top, left, side = square
    half = (side - 1) / 2
    return in_patient(position, kit.TURNED, kit.SPACING, top + half, left + half)


# Of the input's pixels, a fraction of a millimetre: the square is not on their edges.
NEAR_MM = 0.8


@pytest.mark.parametrize("resize", ["pad", "stretch"])
def test_the_map_is_hottest_where_the_square_lies_in_the_patient(resize: str, tmp_path: Path) -> None:
    (found,) = exported(tmp_path, "dicom-pm", kit.slice_of(), resize=resize)
    assert found.FrameOfReferenceUID == kit.FRAME_OF_REFERENCE
    assert (found.Rows, found.Columns) == (kit.ROWS, kit.COLUMNS)
    assert np.linalg.norm(hottest(found) - middle_of(kit.SQUARE)) < NEAR_MM


def test_of_several_frames_each_lies_in_its_own_place(tmp_path: Path) -> None:
    found = exported(tmp_path, "dicom-pm", kit.enhanced([kit.SQUARE, OTHER]))
    assert len(found) == 2
    for number, (one, square) in enumerate(zip(found, (kit.SQUARE, OTHER), strict=True)):
        assert np.linalg.norm(hottest(one) - middle_of(square, kit.position_of(number))) < NEAR_MM
        derived = one.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
        assert derived.ReferencedFrameNumber == number + 1
        assert derived.ReferencedSOPClassUID == kit.EnhancedMRImageStorage


def test_a_negative_and_a_compressed_source_lie_there_too(tmp_path: Path) -> None:
    negative = kit.slice_of(1, (4095 - kit.pixels()).astype(np.uint16), PhotometricInterpretation="MONOCHROME1")
    found = exported(tmp_path, "dicom-pm", negative, compressed(kit.slice_of(2), "jpeg2000"))
    assert len(found) == 2
    for one in found:
        assert np.linalg.norm(hottest(one) - middle_of(kit.SQUARE)) < NEAR_MM
        assert one.PhotometricInterpretation == "MONOCHROME2"


def test_the_values_are_on_the_runs_scale_and_lead_to_the_models_unit(tmp_path: Path) -> None:
    (found,) = exported(tmp_path, "dicom-pm", kit.slice_of(SliceThickness=None))
    values = np.frombuffer(found.FloatPixelData, "<f4")
    assert 0.0 <= values.min() < values.max() <= 1.0
    (shared,) = found.SharedFunctionalGroupsSequence
    (mapping,) = shared.RealWorldValueMappingSequence
    # The run's model has a scale from 0.1 to 2.5.
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (2.4, 0.1)
    # Nothing is made up.
    measures = shared.PixelMeasuresSequence[0]
    assert "SliceThickness" not in measures
    assert "SpacingBetweenSlices" not in measures


@pytest.mark.parametrize("missing", ["FrameOfReferenceUID", "ImagePositionPatient", "PixelSpacing"])
def test_without_a_place_in_space_there_is_no_map_and_that_is_counted(missing: str, tmp_path: Path) -> None:
    run = kit.run_over(tmp_path, {"a.dcm": encode(kit.slice_of(**{missing: None})), "b.dcm": encode(kit.slice_of(2))})
    told = export(run=run, out=str(tmp_path / "o"), format="dicom-pm")
    assert (told["written"], told["refused"]) == (1, {"no_geometry": 1})
    skew = kit.slice_of(3, ImageOrientationPatient=[1, 0, 0, 1, 0, 0])
    assert exported(tmp_path / "skew", "dicom-pm", skew) == []


def test_the_capture_shows_the_picture_and_the_heat_in_the_shape_of_its_pixels(tmp_path: Path) -> None:
    found = exported(tmp_path, "dicom-sc", kit.slice_of(), kit.plain_frames([kit.SQUARE, OTHER]))
    assert len(found) == 3
    for one, square in zip(found, (kit.SQUARE, kit.SQUARE, OTHER), strict=True):
        shown = one.pixel_array.astype(int)
        assert shown.shape == (kit.ROWS, kit.COLUMNS, 3)
        coloured = np.argwhere(shown.max(axis=2) - shown.min(axis=2) > 40)
        assert coloured.min(axis=0).tolist() == [square[0], square[1]]
        assert (coloured.max(axis=0) + 1).tolist() == [square[0] + square[2], square[1] + square[2]]
        assert [float(value) for value in one.PixelSpacing] == list(kit.SPACING)
    assert [one.SourceImageSequence[0].get("ReferencedFrameNumber") for one in found] == [None, 1, 2]
    # A row runs mostly to the left, and somewhat to the back.
    assert list(found[0].PatientOrientation) == ["LP", "HPR"]


def test_a_projection_keeps_its_aspect_and_a_colour_picture_its_colours(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
    projection = kit.slice_of(1, SOPClassUID=DigitalXRayImageStorageForPresentation, **nowhere)
    projection.ImagerPixelSpacing, projection.PatientOrientation = [0.2, 0.1], ["L", "F"]
    projection.Laterality, projection.BurnedInAnnotation, projection.LossyImageCompression = "R", "YES", "01"
    green = np.zeros((kit.ROWS, kit.COLUMNS, 3), np.uint8)
    green[..., 1] = 30
    colour = dataset(green, SOPClassUID=VLPhotographicImageStorage, SOPInstanceUID=f"{kit.ROOT}.1.2")
    found = exported(tmp_path, "dicom-sc", projection, colour)
    assert [int(value) for value in found[0].PixelAspectRatio] == [2000, 1000]
    assert "PixelSpacing" not in found[0]
    assert list(found[0].PatientOrientation) == ["L", "F"]
    assert (found[0].Laterality, found[0].BurnedInAnnotation, found[0].LossyImageCompression) == ("R", "YES", "01")
    assert (found[1].pixel_array == green).all()
    # What is no direction is not repeated.
    with pydicom.config.disable_value_validation():
        projection.PatientOrientation, projection.TimezoneOffsetFromUTC = ["Jane", "Doe"], "+9900"
        odd = encode(projection)
    (capture,) = exported(tmp_path / "odd", "dicom-sc", odd)
    assert not capture.PatientOrientation
    assert capture.ContentTime == "095200"


def measured(group: Dataset) -> dict[str, Any]:
    """The items of a measurement group by what they are called."""
    return {item.ConceptNameCodeSequence[0].CodeMeaning: item for item in group.ContentSequence}


def groups(ds: Dataset) -> list[Dataset]:
    (measurements,) = [
        item for item in ds.ContentSequence if item.ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurements"
    ]
    return list(measurements.ContentSequence)


def test_a_report_tells_the_scores_of_a_study_and_which_algorithm_gave_them(tmp_path: Path) -> None:
    other = f"{kit.ROOT}.5"
    sources = [kit.slice_of(1), kit.enhanced([kit.SQUARE, OTHER]), kit.slice_of(2, study=other)]
    first, second = sorted(exported(tmp_path, "dicom-sr", *sources), key=lambda ds: -len(groups(ds)))
    assert [one.ContentTemplateSequence[0].TemplateIdentifier for one in (first, second)] == ["1500", "1500"]
    assert (first.StudyInstanceUID, second.StudyInstanceUID) == (kit.STUDY, other)
    assert (first.VerificationFlag, first.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert len(groups(first)) == 3
    assert len(groups(second)) == 1
    told = measured(groups(first)[0])
    score = told["Score of the difference from normal images"].MeasuredValueSequence[0]
    assert float(score.NumericValue) == 0.9
    assert float(told["Threshold of the score"].MeasuredValueSequence[0].NumericValue) == 0.5
    assert told["Finding"].ConceptCodeSequence[0].CodeMeaning == "Differs from normal images"
    assert told["Flagged by the rule"].ConceptCodeSequence[0].CodeMeaning == "Yes"
    assert told["Algorithm Name"].TextValue == "retroscan mkd"
    parameters = [
        item.TextValue
        for item in groups(first)[0].ContentSequence
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Algorithm Parameters"
    ]
    assert f"model_id {kit.MODEL}" in parameters
    assert "for research and quality use, not for diagnosis" in parameters
    top, left, side = kit.SQUARE
    region = np.array(told["Image Region"].GraphicData).reshape(-1, 2)
    # Columns first; the input has a pixel for every two of the source.
    assert np.abs(region.min(axis=0) - [left, top]).max() <= 1
    assert np.abs(region.max(axis=0) - [left + side, top + side]).max() <= 1
    frames = [
        reference.ReferencedFrameNumber
        for group in groups(first)[1:]
        for item in group.ContentSequence
        for reference in [*item.get("ReferencedSOPSequence", [])]
        + [r for inner in item.get("ContentSequence", []) for r in inner.get("ReferencedSOPSequence", [])]
    ]
    assert frames == [1, 2]


def test_a_decision_is_named_by_what_follows_from_it(tmp_path: Path) -> None:
    run = kit.run_over(tmp_path, {"a.dcm": encode(kit.slice_of(1)), "b.dcm": encode(kit.slice_of(2))})
    decision = kit.decided(run, {(1, 0)})
    export(run=run, out=str(tmp_path / "o"), format="dicom-sr", decision=decision)
    export(run=run, out=str(tmp_path / "s"), format="dicom-sc", decision=decision)
    (report,), (capture,) = kit.written(tmp_path / "o"), kit.written(tmp_path / "s")
    assert len(groups(report)) == 1
    assert float(measured(groups(report)[0])["Threshold of the score"].MeasuredValueSequence[0].NumericValue) == 0.75
    assert f"decision {decision}" in capture.DerivationDescription
    assert "not for diagnosis" in capture.DerivationDescription
    # When it was decided, not when it was written.
    assert (capture.ContentDate, capture.ContentTime) == ("20250305", "080000")


def verdict(object_id: int, frame: int, word: str, reviewer: str = "R1", decision: str | None = None) -> Verdict:
    noted_at = datetime(2025, 3, 6, 12, object_id, frame, tzinfo=UTC)
    name = f"{object_id}-{frame}-{reviewer}"
    return Verdict(name, object_id, frame, None, "", reviewer, word, None, decision, True, noted_at)


def test_key_objects_are_what_reviewers_accepted_or_supplemented(tmp_path: Path) -> None:
    other = f"{kit.ROOT}.5"
    sources = [kit.slice_of(1), kit.enhanced([kit.SQUARE, OTHER]), kit.slice_of(2, study=other), kit.slice_of(3)]
    objects = {f"{n}.dcm": encode(one) for n, one in enumerate(sources)}
    run = kit.run_over(tmp_path, objects)
    decision = kit.decided(run, {(2, 0)})
    said = [
        *(verdict(0, 0, "accepted"), verdict(0, 0, "rejected", "R2"), verdict(1, 1, "supplemented")),
        *(verdict(1, 0, "accepted"), verdict(2, 0, "accepted", decision=decision), verdict(3, 0, "rejected")),
    ]
    rows = {row["uri"]: row for row in kit.table_rows(run)}
    by_id = {row["object_id"]: row for row in rows.values()}
    add(run, [one._replace(**{n: by_id[one.object_id][n] for n in ("uri", "content_sha256")}) for one in said])
    told = export(run=run, out=str(tmp_path / "ko"), format="dicom-ko")
    assert (told["selected"], told["written"], told["files"]) == (4, 4, 2)
    found = {ds.StudyInstanceUID: ds for ds in kit.written(tmp_path / "ko")}
    images = [item.ReferencedSOPSequence[0] for item in found[kit.STUDY].ContentSequence if item.ValueType == "IMAGE"]
    assert [str(image.ReferencedSOPInstanceUID) for image in images] == [f"{kit.ROOT}.1.1", f"{kit.ROOT}.1.50"]
    assert [image.get("ReferencedFrameNumber") for image in images] == [None, [1, 2]]
    assert found[other].Modality == "KO"
    # Nobody is named.
    assert "R1" not in str(found[kit.STUDY])
    by_decision = export(run=run, out=str(tmp_path / "d"), format="dicom-ko", decision=decision)
    assert by_decision["written"] == 1
    assert not shutil.which("dciodvfy") or [kit.complaints(path) for path in (tmp_path / "ko").glob("*.dcm")] == [
        [],
        [],
    ]


def test_what_is_derived_is_filed_with_its_source_in_a_series_of_its_own(tmp_path: Path) -> None:
    models = (kit.MODEL, "ba9876543210")
    sources = [kit.slice_of(1, TimezoneOffsetFromUTC="+0230"), kit.slice_of(2)]
    series: dict[tuple[str, str], set[str]] = {}
    for form in ("dicom-sc", "dicom-pm", "dicom-sr"):
        (tmp_path / form).mkdir()
        for one in exported(tmp_path / form, form, *sources, models=models):
            series.setdefault((form, one.DeviceSerialNumber), set()).add(one.SeriesInstanceUID)
            assert one.StudyInstanceUID == kit.STUDY
            assert (one.PatientID, str(one.PatientName)) == (SECRETS["PatientID"], SECRETS["PatientName"])
            assert (one.AccessionNumber, one.StudyDescription) == (SECRETS["AccessionNumber"], "Secret story")
            assert "InstitutionName" not in one
            assert one.Manufacturer == "retroscan"
            assert "not for diagnosis" in one.SeriesDescription
            zone = one.get("TimezoneOffsetFromUTC")
            assert one.ContentTime == ("122200" if zone else "095200")
    assert {len(uids) for uids in series.values()} == {1}
    assert len({uid for uids in series.values() for uid in uids}) == 6


def test_names_in_any_script_and_values_that_break_a_rule_are_filed_as_they_are(tmp_path: Path) -> None:
    japanese = kit.slice_of(1, SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎")
    long = kit.slice_of(2)
    with pydicom.config.disable_value_validation():
        long.PatientID, long.PatientBirthDate, long.PatientSex = "9" * 70, "unknown", "female"
        sources = [encode(japanese), encode(long), encode(kit.slice_of(3, PatientName=None, PatientID=None))]
    for form in ("dicom-sc", "dicom-sr"):
        (tmp_path / form).mkdir()
        # One report of all three has the patient of the first.
        found = exported(tmp_path / form, form, *sources[: 3 if form == "dicom-sc" else 1])
        assert found[0].SpecificCharacterSet == "ISO_IR 192"
        assert str(found[0].PatientName) == "Yamada^Tarou=山田^太郎"
        if form == "dicom-sc":
            assert found[1].PatientID == "9" * 70
            assert found[1].PatientBirthDate == "unknown"
            assert found[2].PatientID in ("", None)


def test_what_names_no_study_is_refused(tmp_path: Path) -> None:
    run = kit.run_over(tmp_path, {"a.dcm": encode(kit.slice_of(StudyInstanceUID=None))})
    assert export(run=run, out=str(tmp_path / "o"), format="dicom-sc")["refused"] == {"corrupt": 1}


@kit.judged
@dcmtk_needed
@pytest.mark.parametrize("form", ["dicom-sc", "dicom-pm", "dicom-sr"])
def test_other_programs_find_no_fault_and_read_it(form: str, tmp_path: Path) -> None:
    odd = kit.slice_of(3, SliceThickness=None, PatientSex="", StudyTime="")
    green = np.full((kit.ROWS, kit.COLUMNS, 3), 30, np.uint8)
    colour = kit.slice_of(4, green, bits=8)
    sources = [kit.slice_of(1), kit.enhanced([kit.SQUARE, OTHER]), odd, colour, kit.plain_frames([kit.SQUARE, OTHER])]
    exported(tmp_path, form, *sources)
    paths = sorted((tmp_path / form).glob("*.dcm"))
    assert len(paths) == {"dicom-sc": 7, "dicom-pm": 5, "dicom-sr": 1}[form]
    for path in paths:
        assert kit.complaints(path) == []
        told = subprocess.run(["dcm2json", str(path)], capture_output=True, check=True, timeout=60)
        assert json.loads(told.stdout)["0020000D"]["Value"] == [kit.STUDY]
    if form == "dicom-sr":
        told = subprocess.run(["dsrdump", str(paths[0])], capture_output=True, text=True, check=True, timeout=60)
        assert told.stdout.count("Score of the difference") == 7
    if form == "dicom-sc":
        picture = tmp_path / "shown.png"
        subprocess.run(["dcmj2pnm", "--write-png", str(paths[0]), str(picture)], check=True, timeout=60)
        from PIL import Image

        assert (np.asarray(Image.open(picture)) == pydicom.dcmread(paths[0]).pixel_array).all()


def test_a_report_never_mixes_studies_whatever_the_table_says(tmp_path: Path) -> None:
    objects = {"1.dcm": encode(kit.slice_of(1)), "2.dcm": encode(kit.slice_of(2, study=f"{kit.ROOT}.5"))}
    run = kit.run_over(tmp_path, objects)
    (part,) = Path(run, "scores").iterdir()
    rows = [row | {"study_uid": kit.STUDY} for row in kit.table_rows(run)]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORES), part)
    told = export(run=run, out=str(tmp_path / "o"), format="dicom-sr")
    assert (told["written"], told["refused"]) == (1, {"other_study": 1})
