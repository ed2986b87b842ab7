"""The parts of a manifest with headers: an index goes on where it was, and older manifests are read."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from headerkit import KEY, NAMES, check_columns, files, parts, picture

from ad_jobs.archive import header_index, headers, progress
from ad_jobs.archive.header_options import HeaderOptions
from ad_jobs.archive.identifiers import Identifiers
from ad_jobs.archive.listing import write_manifest
from ad_jobs.archive.manifest import read_manifest, row_bytes, select
from ad_jobs.archive.manifest_record import manifest_info
from ad_jobs.errors import UsageError
from ad_jobs.index import index
from ad_jobs.schema import FIRST_HEADERS, MANIFEST_HEADERS
from cluster import storage

PLAIN = HeaderOptions()


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


def test_the_digest_is_that_of_all_rows(mixed: Path, tmp_path: Path) -> None:
    info = manifest_info(indexed(str(mixed), str(tmp_path / "out")))
    rows = (row_bytes(tuple(row.values())) for row in read_manifest(info.uri).to_pylist())
    assert hashlib.sha256(b"".join(rows)).hexdigest() == info.digest


def test_a_terminal_sees_how_far_it_is(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for _ in range(2):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        out = indexed(str(mixed), str(tmp_path / "out"))
        assert "headers" in terminal.getvalue()
        # Those of parts that are kept among them.
        assert f"{len(NAMES)}/{len(NAMES)}" in terminal.getvalue()
        Path(out, "manifest.json").unlink()
    assert caplog.records == []


def test_a_log_is_told_how_far_it_is(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO, "retroscan.index"):
        indexed(str(mixed), str(tmp_path / "out"))
    assert [entry.getMessage() for entry in caplog.records] == [f"{n} of 8 headers." for n in range(1, 9)]


# --- Manifests of earlier versions


def as_before(manifest: Path, columns: tuple[str, ...] = FIRST_HEADERS) -> None:
    """The manifest as the first version with headers left it; with other columns as one that wrote them down."""
    part, record = manifest / "part-00000.parquet", json.loads((manifest / "manifest.json").read_text())
    pq.write_table(pq.read_table(part, columns=list(columns)).replace_schema_metadata(None), part)
    known = columns == FIRST_HEADERS
    for name in ("seal", "root", *(("columns", "identifiers", "left_out") if known else ())):
        record.pop(name)
    record |= {} if known else {"columns": list(columns)}
    record["parts"][0]["sha256"] = hashlib.sha256(part.read_bytes()).hexdigest()
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


def test_a_manifest_of_a_version_that_wrote_no_site(mixed: Path, tmp_path: Path) -> None:
    info = index(str(mixed), str(tmp_path / "out"), headers=True)
    assert select(info, "site = 'Hidden Clinic'").ids.tolist() == [0, 1]
    columns = tuple(name for name in info.names if name != "site")
    as_before(tmp_path / "out", columns)
    old = manifest_info(info.uri)
    assert old.names == columns
    assert select(old, "modality = 'CT' AND study_uid IS NOT NULL").ids.tolist() == [1]
    with pytest.raises(UsageError, match=r"An earlier version made it.*retroscan index --headers, into a new"):
        select(old, "site = 'Hidden Clinic'")
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
    record["parts"][0]["sha256"] = hashlib.sha256(part.read_bytes()).hexdigest()
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
