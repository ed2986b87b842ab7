"""`index --headers`: what its columns say, what they never say, and how little is read for them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import dicomkit as kit
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from headerkit import KEY, NAMES, OBJECTS, PERSON, check_columns, dicom, files, parts
from scankit import make_model

from ad_jobs.archive import headers
from ad_jobs.archive.fetching import Fetcher
from ad_jobs.archive.identifiers import Identifiers
from ad_jobs.archive.manifest import read_manifest, select
from ad_jobs.errors import JobError, UsageError
from ad_jobs.index import index
from ad_jobs.scanning.intent import resolve
from ad_jobs.schema import DEMOGRAPHICS, IDENTIFYING, MANIFEST_HEADERS
from ad_jobs.specs import ScanSpec
from cluster import storage

ONCE = 64 * 1024


def test_columns(mixed: Path, tmp_path: Path) -> None:
    info = index(str(mixed), str(tmp_path / "one"), headers=True)
    assert (info.headers, info.identifiers, info.names) == (True, "plain", tuple(MANIFEST_HEADERS.names))
    check_columns(info.uri, str(mixed))
    assert parts(info.uri) == parts(index(str(mixed), str(tmp_path / "two"), headers=True).uri)


def test_objects_that_are_gone(mixed: Path) -> None:
    listed = mixed / "list.csv"
    listed.write_text("image\none/a.dcm\ntwo/gone.dcm\n")
    table = read_manifest(index(str(listed), str(mixed / "manifest"), headers=True).uri)
    assert table["header_error"].to_pylist() == [None, "not_found"]
    assert table["kind"].to_pylist() == ["dicom", None]
    assert table["group"].to_pylist() == [f"{mixed}/one", f"{mixed}/two"]


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("study_uid = '1.2.826.0.1.3680043.8.498.2'", ["one/a.dcm", "one/b"]),
        ("kind = 'png'", ["two/f"]),
        ("image_type NOT LIKE '%LOCALIZER%'", ["one/a.dcm"]),
        ("\"group\" LIKE '%/two' AND kind <> 'dicom'", ["two/e.dcm", "two/f", "two/g", "two/h"]),
        ("NOT compressed AND NOT lossy AND modality = 'CT'", ["one/b"]),
    ],
)
def test_conditions(mixed: Path, tmp_path: Path, where: str, names: list[str]) -> None:
    info = index(str(mixed), str(tmp_path / "out"), headers=True)
    assert read_manifest(info.uri, ["uri"], where)["uri"].to_pylist() == [f"{mixed}/{name}" for name in names]


def test_a_scan_takes_what_a_condition_selects(mixed: Path, tmp_path: Path) -> None:
    info = index(str(mixed), str(tmp_path / "manifest"), headers=True)
    model = make_model(tmp_path / "model")
    spec = ScanSpec(source=info.uri, model=[model], out=str(tmp_path / "run"), where="kind = 'png'")
    intent = resolve(spec)
    assert (intent.objects, intent.ids(0).tolist(), intent.undecided) == (1, [5], 0)


def test_what_a_condition_cannot_judge_is_counted(mixed: Path, tmp_path: Path) -> None:
    info = index(str(mixed), str(tmp_path / "out"), headers=True)
    found = select(info, "image_type NOT LIKE '%LOCALIZER%'")
    assert (found.ids.tolist(), found.undecided) == ([0], 6)


def test_a_word_of_sql_may_be_written_as_it_is(mixed: Path, tmp_path: Path) -> None:
    info = index(str(mixed), str(tmp_path / "out"), headers=True)
    found, quoted = select(info, "group LIKE '%/two'"), select(info, "\"group\" LIKE '%/two'")
    assert len(found.ids)
    assert found.ids.tolist() == quoted.ids.tolist()
    with pytest.raises(UsageError, match=r"Columns: .*, group, kind"):
        select(info, "groups LIKE '%/two'")


# --- How little is read


def test_an_object_is_read_no_further_than_its_header(
    mixed: Path, tmp_path: Path, asked: list[tuple[str, int, int]]
) -> None:
    (mixed / "two" / "large.dcm").write_bytes(OBJECTS["one/a.dcm"] + bytes(600_000))
    index(str(mixed), str(tmp_path / "out"), headers=True)
    first = [(name.rpartition("/")[2], 0, ONCE) for name in [*NAMES, "two/large.dcm"]]
    # One more range for each look, and no byte twice.
    more = [("b", ONCE, 7 * ONCE), ("b", 8 * ONCE, 56 * ONCE)]
    assert sorted(asked) == sorted(first + more)


def test_a_header_of_up_to_eight_looks_takes_two(tmp_path: Path, asked: list[tuple[str, int, int]]) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "x").write_bytes(dicom(private_bytes=400_000))
    info = index(str(tmp_path / "archive"), str(tmp_path / "out"), headers=True)
    assert asked == [("x", 0, ONCE), ("x", ONCE, 7 * ONCE)]
    assert read_manifest(info.uri)["rows"].to_pylist() == [kit.ROWS]


def test_refused_credentials_end_the_index_and_are_no_property_of_objects(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(uri: str, *_: int) -> bytes:
        raise storage.KeysRefused(uri, "expired")

    with monkeypatch.context() as patch:
        patch.setattr(headers, "_FETCHER", Fetcher(fetch_range=refuse))
        with pytest.raises(JobError, match=r"credentials.*it continues"):
            index(str(mixed), str(tmp_path / "out"), headers=True)
    check_columns(index(str(mixed), str(tmp_path / "out"), headers=True).uri, str(mixed))


# --- What is never told


def every_byte(folder: str) -> bytes:
    """All that a manifest holds, with its tables as plain text beside what compression left of it."""
    found = b"".join(files(folder).values())
    for data in parts(folder).values():
        table = pq.read_table(pa.BufferReader(data))
        plain = io.BytesIO()
        pq.write_table(table, plain, compression="none", use_dictionary=False)
        found += plain.getvalue() + json.dumps(table.to_pylist(), default=str).encode()
    return found


@pytest.mark.parametrize("mode", ["plain", "hashed", "none"])
def test_no_identifier_leaks(mixed: Path, tmp_path: Path, key: Path, mode: str) -> None:
    keyed = {"identifiers_key": key} if mode == "hashed" else {}
    info = index(
        str(mixed),
        str(tmp_path / "out"),
        headers=True,
        demographics=True,
        identifiers=mode,
        **keyed,  # type: ignore
    )
    found = every_byte(info.uri)
    site = kit.SECRETS["InstitutionName"]
    assert (site.encode() in found) == (mode == "plain")
    secrets = [value for value in kit.SECRETS.values() if value != site]
    planted = [*secrets, *(value for value in PERSON.values() if value != "F"), KEY.decode()]
    # Four digits alone stand in many a hash.
    for secret in [*planted, "Doe", "Jane", "Secret", "1970-01"]:
        assert secret.encode() not in found, secret
    assert (b"1.2.826.0.1.3680043.8.498." in found) == (mode == "plain")


def test_identifiers_are_those_of_a_run_with_the_same_key(mixed: Path, tmp_path: Path, key: Path) -> None:
    plain = read_manifest(index(str(mixed), str(tmp_path / "plain"), headers=True).uri)
    hashed = index(str(mixed), str(tmp_path / "hashed"), headers=True, identifiers="hashed", identifiers_key=key)
    identifiers = Identifiers("hashed", KEY)
    table = read_manifest(hashed.uri)
    for name in IDENTIFYING:
        assert table[name].to_pylist() == [identifiers.uid(uid) for uid in plain[name].to_pylist()]
    assert plain["site"].to_pylist() == ["Hidden Clinic"] * 2 + [None] * 6
    assert table.drop_columns(list(IDENTIFYING)).equals(plain.drop_columns(list(IDENTIFYING)))
    where = f"study_uid = '{identifiers.uid('1.2.826.0.1.3680043.8.498.2')}'"
    assert read_manifest(hashed.uri, ["object_id"], where)["object_id"].to_pylist() == [0, 1]


def test_without_identifiers_there_are_no_such_columns(mixed: Path, tmp_path: Path) -> None:
    info = index(str(mixed), str(tmp_path / "out"), headers=True, identifiers="none")
    assert read_manifest(info.uri).column_names == [name for name in MANIFEST_HEADERS.names if name not in IDENTIFYING]
    with pytest.raises(UsageError, match=r"study_uid.*--identifiers plain or hashed"):
        read_manifest(info.uri, where="study_uid = '1.2'")
    with pytest.raises(UsageError, match=r"Got: site, sop_uid.*--identifiers plain or hashed"):
        read_manifest(info.uri, ["sop_uid", "site"])


def test_demographics_are_columns_if_they_are_asked_for(mixed: Path, tmp_path: Path) -> None:
    without = index(str(mixed), str(tmp_path / "without"), headers=True)
    with pytest.raises(UsageError, match=r"age_band and sex need: retroscan index --headers --demographics"):
        read_manifest(without.uri, where="sex = 'F'")
    info = index(str(mixed), str(tmp_path / "with"), headers=True, demographics=True)
    table = read_manifest(info.uri)
    assert table.schema.equals(pa.schema([*MANIFEST_HEADERS, *DEMOGRAPHICS]))
    assert table.select(DEMOGRAPHICS.names).to_pylist()[:3] == [{"age_band": "45-49", "sex": "F"}] * 2 + [
        {"age_band": None, "sex": None}
    ]
    assert read_manifest(info.uri, ["object_id"], "sex = 'F'")["object_id"].to_pylist() == [0, 1]


@pytest.mark.parametrize("options", [{"demographics": True}, {"identifiers": "none"}, {"identifiers_key": "key"}])
def test_what_is_said_of_headers_needs_them(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"without --headers\. Add --headers"):
        index("archive", "out", **options)


def test_hashed_identifiers_need_a_key(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--identifiers-key FILE"):
        index(str(mixed), str(tmp_path / "out"), headers=True, identifiers="hashed")
    assert not (tmp_path / "out").exists()
