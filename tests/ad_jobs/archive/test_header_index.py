"""`index --headers`: what its columns say, what they never say, and how little is read for them."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dicomkit as kit
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ad_jobs.archive import header_index, headers
from ad_jobs.archive.fetching import Fetcher
from ad_jobs.archive.header_options import HeaderOptions
from ad_jobs.archive.identifiers import Identifiers
from ad_jobs.archive.listing import write_manifest
from ad_jobs.archive.manifest import read_manifest, select
from ad_jobs.archive.manifest_record import manifest_info
from ad_jobs.errors import JobError, UsageError
from ad_jobs.index import index
from ad_jobs.schema import DEMOGRAPHICS, FIRST_HEADERS, MANIFEST_HEADERS, UIDS
from cluster import storage

KEY = b"a secret of this test"
ONCE = 64 * 1024
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
PLAIN = HeaderOptions()


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    folder = tmp_path / "mixed"
    for name, data in OBJECTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def key(tmp_path: Path) -> Path:
    (tmp_path / "key").write_bytes(KEY + b"\n")
    return tmp_path / "key"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """The ranges of objects that are read, as (name, offset, length)."""
    ranges: list[tuple[str, int, int]] = []

    def note(uri: str, offset: int, length: int) -> bytes:
        ranges.append((uri.rpartition("/")[2], offset, length))
        return storage.fetch_range(uri, offset, length)

    monkeypatch.setattr(headers, "_FETCHER", Fetcher(fetch_range=note))
    return ranges


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


def test_what_a_condition_cannot_judge_is_counted(mixed: Path, tmp_path: Path) -> None:
    info = index(str(mixed), str(tmp_path / "out"), headers=True)
    found = select(info, "image_type NOT LIKE '%LOCALIZER%'")
    assert (found.ids.tolist(), found.undecided) == ([0], 6)


def test_a_word_of_sql_is_shown_as_it_must_be_written(mixed: Path, tmp_path: Path) -> None:
    info = index(str(mixed), str(tmp_path / "out"), headers=True)
    with pytest.raises(UsageError, match=r'Columns: .*, "group", kind'):
        select(info, "group LIKE '%/two'")


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
    planted = [*kit.SECRETS.values(), *(value for value in PERSON.values() if value != "F"), KEY.decode()]
    for secret in [*planted, "Doe", "Jane", "Secret", "1970"]:
        assert secret.encode() not in found, secret
    assert (b"1.2.826.0.1.3680043.8.498." in found) == (mode == "plain")


def test_identifiers_are_those_of_a_run_with_the_same_key(mixed: Path, tmp_path: Path, key: Path) -> None:
    plain = read_manifest(index(str(mixed), str(tmp_path / "plain"), headers=True).uri)
    hashed = index(str(mixed), str(tmp_path / "hashed"), headers=True, identifiers="hashed", identifiers_key=key)
    identifiers = Identifiers("hashed", KEY)
    table = read_manifest(hashed.uri)
    for name in UIDS:
        assert table[name].to_pylist() == [identifiers.uid(uid) for uid in plain[name].to_pylist()]
    assert table.drop_columns(list(UIDS)).equals(plain.drop_columns(list(UIDS)))
    where = f"study_uid = '{identifiers.uid('1.2.826.0.1.3680043.8.498.2')}'"
    assert read_manifest(hashed.uri, ["object_id"], where)["object_id"].to_pylist() == [0, 1]


def test_without_identifiers_there_are_no_such_columns(mixed: Path, tmp_path: Path) -> None:
    info = index(str(mixed), str(tmp_path / "out"), headers=True, identifiers="none")
    assert read_manifest(info.uri).column_names == [name for name in MANIFEST_HEADERS.names if name not in UIDS]
    with pytest.raises(UsageError, match=r"study_uid.*--identifiers plain or hashed"):
        read_manifest(info.uri, where="study_uid = '1.2'")
    with pytest.raises(UsageError, match=r"Got: sop_uid.*--identifiers plain or hashed"):
        read_manifest(info.uri, ["sop_uid"])


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


@pytest.mark.parametrize(
    "options", [{"demographics": True}, {"identifiers": "none"}, {"identifiers_key": "key"}, {"address": "auto"}]
)
def test_what_is_said_of_headers_needs_them(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"without --headers\. Add --headers"):
        index("archive", "out", **options)


def test_hashed_identifiers_need_a_key(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--identifiers-key FILE"):
        index(str(mixed), str(tmp_path / "out"), headers=True, identifiers="hashed")
    assert not (tmp_path / "out").exists()


# --- Going on


def indexed(source: str, out: str, options: HeaderOptions = PLAIN) -> str:
    """A manifest in parts of two rows."""
    return write_manifest(source, out, headers=options, part_rows=4, batch_rows=2).uri


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next index be interrupted once so many parts of it are written."""
    written = Counter[str]()
    write = storage.write_bytes

    def stopping(uri: str, data: bytes) -> None:
        if written.total() == count:
            raise KeyboardInterrupt
        written[uri] += 1
        write(uri, data)

    monkeypatch.setattr(header_index.storage, "write_bytes", stopping)


def check_going_on(
    source: str, folder: Callable[[str], str], asked: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = indexed(source, folder("whole"))
    asked.clear()
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            indexed(source, folder("again"))
    assert storage.list_names(folder("again")) == [f"part-0000{number}.parquet" for number in range(3)]
    asked.clear()
    again = indexed(source, folder("again"))
    assert {name for name, _, _ in asked} == {"g", "h"}
    assert parts(again) == parts(whole)
    records = [json.loads(files(uri)["manifest.json"]) for uri in (whole, again)]
    for record in records:
        del record["created"], record["seal"]
    assert records[0] == records[1]
    # A finished one reads nothing, and stays as it is.
    asked.clear()
    before = files(again)
    assert indexed(source, again) == again
    assert (asked, files(again)) == ([], before)


def test_an_interrupted_index_goes_on(
    mixed: Path, tmp_path: Path, asked: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_going_on(str(mixed), lambda name: str(tmp_path / name), asked, monkeypatch)


@pytest.mark.parametrize(
    "other",
    [
        HeaderOptions(demographics=True),
        HeaderOptions(Identifiers("none")),
        HeaderOptions(Identifiers("hashed", b"another key")),
    ],
)
def test_parts_that_were_made_otherwise_are_made_anew(mixed: Path, tmp_path: Path, other: HeaderOptions) -> None:
    options = HeaderOptions(Identifiers("hashed", KEY))
    whole = indexed(str(mixed), str(tmp_path / "whole"), options)
    left = indexed(str(mixed), str(tmp_path / "left"), other)
    (tmp_path / "left" / "manifest.json").unlink()
    assert parts(indexed(str(mixed), left, options)) == parts(whole)


def test_parts_of_objects_that_have_changed_are_made_anew(
    mixed: Path, tmp_path: Path, asked: list[tuple[str, int, int]]
) -> None:
    out = indexed(str(mixed), str(tmp_path / "out"))
    before = parts(out)
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / "part-00001.parquet").write_bytes(b"PAR1 half")
    (mixed / "two" / "h").write_bytes(picture("PNG"))
    asked.clear()
    indexed(str(mixed), out)
    assert {name for name, _, _ in asked} == {"c.txt", "d.dcm", "g", "h"}
    assert {name for name, data in parts(out).items() if data != before[name]} == {"part-00003.parquet"}
    assert read_manifest(out)["kind"].to_pylist()[-1] == "png"


def test_a_finished_manifest_is_never_replaced(mixed: Path, tmp_path: Path) -> None:
    options = HeaderOptions(Identifiers("hashed", KEY))
    out = indexed(str(mixed), str(tmp_path / "out"), options)
    before = files(out)
    with pytest.raises(UsageError, match=r"with headers, without demographics, identifiers hashed.*new folder"):
        indexed(str(mixed), out)
    with pytest.raises(UsageError, match=r"source, or the key of its identifiers, has changed.*new folder"):
        indexed(str(mixed), out, HeaderOptions(Identifiers("hashed", b"another key")))
    (mixed / "two" / "h").write_bytes(b"")
    with pytest.raises(UsageError, match=r"has changed.*new folder"):
        indexed(str(mixed), out, options)
    (mixed / "two" / "h").unlink()
    (mixed / "two" / "g").unlink()
    with pytest.raises(UsageError, match=r"has changed.*new folder"):
        indexed(str(mixed), out, options)
    assert files(out) == before


# --- Manifests of earlier versions


def as_before(manifest: Path) -> None:
    """The manifest as the first version with headers left it."""
    part, record = manifest / "part-00000.parquet", json.loads((manifest / "manifest.json").read_text())
    pq.write_table(pq.read_table(part, columns=list(FIRST_HEADERS)).replace_schema_metadata(None), part)
    for name in ("columns", "identifiers", "seal", "root", "left_out"):
        record.pop(name)
    record["parts"][0]["sha256"] = header_index.hashlib.sha256(part.read_bytes()).hexdigest()
    (manifest / "manifest.json").write_text(json.dumps(record))


def test_a_manifest_of_an_earlier_version(mixed: Path, tmp_path: Path) -> None:
    info = index(str(mixed), str(tmp_path / "out"), headers=True)
    now = read_manifest(info.uri)
    as_before(tmp_path / "out")
    old = manifest_info(info.uri)
    assert (old.names, old.identifiers) == (FIRST_HEADERS, None)
    assert read_manifest(old.uri).equals(now.select(list(FIRST_HEADERS)))
    assert select(old, "modality = 'CT'").ids.tolist() == [1]
    for where in ("kind = 'png'", "study_uid = '1.2'"):
        with pytest.raises(UsageError, match=r"An earlier version made it.*retroscan index --headers, into a new"):
            select(old, where)
    with pytest.raises(UsageError, match=r"by an earlier version.*new folder"):
        index(str(mixed), old.uri, headers=True)


def test_a_manifest_of_a_later_version_is_read_as_far_as_it_is_known(mixed: Path, tmp_path: Path) -> None:
    info = index(str(mixed), str(tmp_path / "out"), headers=True)
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())
    part = tmp_path / "out" / "part-00000.parquet"
    table = pq.read_table(part)
    pq.write_table(table.append_column("new", pa.array(np.arange(table.num_rows))), part)
    del record["seal"], record["root"]
    record["columns"].append("new")
    record["parts"][0]["sha256"] = header_index.hashlib.sha256(part.read_bytes()).hexdigest()
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(record))
    assert read_manifest(info.uri).column_names == MANIFEST_HEADERS.names
    assert select(manifest_info(info.uri), "kind = 'png'").ids.tolist() == [5]


# --- Elsewhere


@pytest.mark.s3
class TestS3:
    def test_the_same_columns_by_as_few_requests(self, s3: Any, mixed: Path, asked: list[tuple[str, int, int]]) -> None:
        archive = s3.put_folder(mixed, "headers/archive")
        check_columns(index(archive, s3.uri("headers-out"), headers=True).uri, archive)
        assert Counter(name for name, _, _ in asked) == {
            name.rpartition("/")[2]: 3 if name == "one/b" else 1 for name in NAMES
        }

    def test_an_interrupted_index_goes_on(
        self, s3: Any, mixed: Path, asked: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archive = s3.put_folder(mixed, "headers-again/archive")
        check_going_on(archive, lambda name: s3.uri(f"headers-again-{name}"), asked, monkeypatch)


@pytest.mark.ray
def test_a_cluster_reads_the_same(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "CALL_OBJECTS", 1)
    options = {"headers": True, "demographics": True}
    here = index(str(mixed), str(tmp_path / "here"), **options)  # type: ignore[call-overload]
    # As Ray itself calls a cluster of this process alone.
    there = index(str(mixed), str(tmp_path / "there"), address="local", **options)  # type: ignore[call-overload]
    assert parts(there.uri) == parts(here.uri)
