"""What of a DICOM header reaches a table, and that nothing else does."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import dicomkit as kit
import numpy as np
import pytest
from dicomkit import COLUMNS, LIMITS, ROWS, policy, refused
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ad_jobs.archive.fetching import Source, fetch_all, prepare_each
from ad_jobs.images.decode import Decoded, decode, read_header
from ad_jobs.images.dicom_file import HEAD_BYTES
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.schema import HEADER, MANIFEST, MANIFEST_HEADERS


def test_header_is_an_allow_list() -> None:
    decoded: Decoded = decode(kit.dicom(kit.ramp(), bits=12), policy(), LIMITS)
    # The last ones are for a model's domain and its calibrations, and reach no table.
    assert sorted(decoded.header) == sorted([*HEADER.names, "body_part", "model", "site", "spacing_mm"])
    assert decoded.header == {
        "body_part": None,
        "model": None,
        "site": "Hidden Clinic",
        "spacing_mm": None,
        "study_uid": "1.2.826.0.1.3680043.8.498.2",
        "series_uid": "1.2.826.0.1.3680043.8.498.3",
        "sop_uid": "1.2.826.0.1.3680043.8.498.1",
        "modality": "CT",
        "manufacturer": "Maker",
        "study_month": "2023-05",
        "rows": ROWS,
        "columns": COLUMNS,
        "bits": 12,
        "photometric": "MONOCHROME2",
        "transfer_syntax": "1.2.840.10008.1.2.1",
    }


@pytest.mark.parametrize(("date", "month"), [("1999.12.31", "1999-12"), ("", None), ("20231399", None), ("Doe", None)])
def test_a_study_date_becomes_a_month_or_nothing(date: str, month: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = kit.dicom(kit.ramp(), StudyDate=date)
    assert decode(data, policy(), LIMITS).header["study_month"] == month


def test_no_error_repeats_header_text(capfd: pytest.CaptureFixture[str]) -> None:
    spoiled: list[dict[str, Any]] = [
        {"SOPClassUID": "Doe^Jane"},
        {"PhotometricInterpretation": "DOE JANE"},
        {"NumberOfFrames": "3"},
        {"BitsStored": 77},
    ]
    for attributes in spoiled:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = kit.dicom(kit.ramp() if "SOPClassUID" not in attributes else None, **attributes)
        data = data.replace(b"IS\x02\x003 ", b"IS\x02\x00JD")
        text = str(refused(data)).lower()
        assert "doe" not in text
        assert "jane" not in text
        assert "jd" not in text
    streams = capfd.readouterr()
    assert streams.out == streams.err == ""


def test_read_header_fills_the_manifests_columns() -> None:
    data = kit.dicom(
        np.stack([kit.ramp()] * 3),
        bits=12,
        BodyPartExamined="CHEST",
        ManufacturerModelName="M1",
        BurnedInAnnotation="NO",
    )
    found = read_header(data)
    assert list(found) == [name for name in MANIFEST_HEADERS.names if name not in (*MANIFEST.names, "group")]
    assert (found["frames"], found["bits"], found["body_part"], found["burned_in"]) == (3, 12, "CHEST", "NO")
    assert (found["rows"], found["columns"], found["sop_class"]) == (ROWS, COLUMNS, "1.2.840.10008.5.1.4.1.1.2")
    assert found["header_error"] is None
    pixels = data.index(b"\xe0\x7f\x10\x00")
    assert read_header(data[: pixels + 12], len(data)) == found
    # Every shorter head either suffices or says that it does not.
    for end in range(256, pixels, 7):
        part = read_header(data[:end], len(data))
        assert part == found or part["header_error"] == "truncated", end


def test_read_header_of_bad_bytes_names_the_code() -> None:
    assert read_header(b"")["header_error"] == "empty"
    assert read_header(b"no image at all" * 50)["header_error"] == "unknown_format"
    assert read_header(kit.dicom(None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33"))["header_error"] is None


def test_a_header_that_inflates_to_more_than_any_takes_is_not_read() -> None:
    ds = kit.dataset(kit.ramp())
    ds.add_new(0x00091010, "OB", bytes(HEAD_BYTES))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data = kit.encode(ds)
    assert len(data) < 100_000
    assert read_header(data)["header_error"] == "too_many_bytes"
    # Nor is more of it asked for.
    assert read_header(data[:40_000], len(data))["header_error"] == "too_many_bytes"


def test_a_value_that_is_none_of_its_list_reaches_no_table() -> None:
    data = kit.dicom(kit.ramp(), PhotometricInterpretation="DOE^JANE", BurnedInAnnotation="DOE JANE")
    found = read_header(data)
    assert (found["photometric"], found["burned_in"]) == (None, None)
    found = read_header(kit.dicom(kit.ramp(), PhotometricInterpretation="monochrome2", BurnedInAnnotation="YES"))
    assert (found["photometric"], found["burned_in"]) == ("monochrome2", "YES")


CUT = kit.dicom(kit.ramp(), bits=12)[:-20]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        # Native pixels that end too early, and compressed ones, of which no data set can be read whole.
        (CUT, "truncated"),
        (kit.in_form(kit.dataset(kit.ramp(), bits=12), "rle")[:-30], "truncated"),
        (kit.dicom(kit.ramp(), bits=12, PhotometricInterpretation="MONOCHROME9"), "unsupported_image"),
    ],
)
def test_an_object_that_fails_has_the_header_that_can_be_read(data: bytes, code: str) -> None:
    error = refused(data)
    assert str(error.code) == code
    found = {name: error.header[name] for name in HEADER.names}
    assert (found["modality"], found["rows"], found["columns"]) == ("CT", ROWS, COLUMNS)
    assert found["study_uid"] == "1.2.826.0.1.3680043.8.498.2"
    assert pickle.loads(pickle.dumps(error)).header == error.header
    assert "1.2.826" not in repr(error), "what is logged has none of it"


def test_it_comes_through_the_decoders_process_and_is_prepared(tmp_path: Path) -> None:
    path = tmp_path / "cut.dcm"
    path.write_bytes(CUT)
    with GuardedDecoder() as decoder:
        (fetched,) = fetch_all([Source(0, str(path))], LIMITS.max_bytes)
        (prepared,) = prepare_each(fetched, [policy()], LIMITS, decoder)
    assert prepared.error is not None
    assert (prepared.frames, prepared.header["modality"], prepared.header["rows"]) == ([], "CT", ROWS)


def test_what_is_no_dicom_object_fails_without_a_header() -> None:
    assert refused(b"nothing").header == {}
