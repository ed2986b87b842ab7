"""An archive of the worst: no object, name or header of it ends a listing, and what is left out is told."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydicom.dataset import Dataset
from scankit import describe_grey, png, written

from ad_jobs.archive.fetching import FetchedObject, Source
from ad_jobs.archive.identifiers import Identifiers
from ad_jobs.archive.manifest import read_manifest
from ad_jobs.archive.sources import open_source, read_source
from ad_jobs.errors import ErrorCode, ImageError, UsageError
from ad_jobs.images.decode import Decoded
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.index import index
from ad_jobs.scanning.stages import prepare_fetched
from ad_jobs.schema import storable
from cluster import storage

# Each is the name of one object, local and in S3.
NAMES = [
    "a#b,c%20d?.png",
    "new\nline.png",
    "cr\r.png",
    "bell\x07.png",
    "a+b c .png",
    "q\"'&<>.png",
    "%FF",
    "é日本\U0001d11e",
]


def surrogate_dicom() -> bytes:
    """An MR image whose texts hold lone surrogates: a decoder of texts may be any that a character set names."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3"
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3.4", "1.2.3.5"
    data.SpecificCharacterSet = "unicode_escape"
    describe_grey(data, 4, 4)
    data.PixelData = bytes(range(0, 64, 2))
    data.Modality = "MR"
    data.add_new("Manufacturer", "LO", rb"\ud800X ".decode())
    data.add_new("ManufacturerModelName", "LO", rb"a\udfffb ".decode())
    return written(data)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Nine objects and as many things that are none."""
    root = tmp_path / "archive"
    (root / "folder").mkdir(parents=True)
    for name in NAMES:
        (root / name).write_bytes(png(1))
    (root / "surrogate.dcm").write_bytes(surrogate_dicom())
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe.png")).write_bytes(png(2))
    for name, target in {
        "loop": ".",
        "itself": "itself",
        "out": "/etc/hostname",
        "below-a-file": "surrogate.dcm/x",
        "nowhere": "gone",
        "folder-link": "folder",
    }.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    before = Path.cwd()
    # The path of a socket has 107 bytes at most.
    os.chdir(root)
    try:
        listening.bind("socket")
    finally:
        os.chdir(before)
        listening.close()
    return root


def test_every_object_is_listed_and_the_rest_is_told(
    hostile: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    info = index(str(hostile), str(tmp_path / "manifest"), headers=True)
    assert info.objects == len(NAMES) + 2
    assert info.left_out == {"links": 6, "special_files": 2}
    record = json.loads((tmp_path / "manifest" / "manifest.json").read_text())
    assert record["left_out"] == info.left_out
    assert "listing: 6 links were not followed." in caplog.text
    assert "listing: 2 pipes, sockets and devices are no objects." in caplog.text
    table = read_manifest(info.uri)
    found = {row["uri"].rpartition("/")[2]: row for row in table.to_pylist()}
    assert set(found) == {*NAMES, "surrogate.dcm", "%FF%FE.png"}
    assert (found["surrogate.dcm"]["manufacturer"], found["surrogate.dcm"]["model"]) == ("\ufffdX", "a\ufffdb")
    assert all(storage.fetch(uri).data for uri in table["uri"].to_pylist())


@contextmanager
def as_nobody() -> Iterator[None]:
    """A block in which this process may no more than anybody: to root no folder is shut."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_what_may_not_be_read_is_left_out_and_counted() -> None:
    # Not below pytest's folder, which is its owner's alone.
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        for name in ("open", "shut", "unsearchable"):
            (root / name).mkdir()
            (root / name / "a.png").write_bytes(png(1))
        (root / "unreadable.png").write_bytes(png(1))
        (root / "into-shut").symlink_to("shut/a.png")
        for name, mode in {"shut": 0, "unsearchable": 0o444, "unreadable.png": 0}.items():
            (root / name).chmod(mode)
        with as_nobody():
            listing = open_source(folder)
            found = [o.uri for o in listing.objects]
            with pytest.raises(storage.AccessDenied):
                storage.fetch(found[1])
        for name in ("shut", "unsearchable"):
            (root / name).chmod(0o755)
        # A file that is there and may not be opened is an object: it gets a row that says so.
        assert found == [f"{folder}/open/a.png", f"{folder}/unreadable.png"]
        assert listing.left_out == {"unreadable": 2, "links": 1}


def test_texts_of_a_header_reach_a_row_as_unicode() -> None:
    assert storable("a\ud800b\udfff") == "a\ufffdb\ufffd"
    policy = PixelPolicy(channels=1, height_px=4, width_px=4)
    good = FetchedObject(Source(0, "/x"), surrogate_dicom(), False, None, 0.0)
    bad = FetchedObject(Source(1, "/y"), None, False, ImageError(ErrorCode.NOT_FOUND, storable("/\udcff")), 0.0)
    with GuardedDecoder() as decoder:
        rows = prepare_fetched([good, bad], [policy], Limits(), decoder, Identifiers("hashed", b"key"), []).to_pylist()
    assert [row["error_code"] for row in rows] == [None, "not_found"]
    assert rows[0]["manufacturer"] == "\ufffdX"


def test_what_a_decoder_says_of_an_object_reaches_a_row_as_unicode() -> None:
    class Decoder:
        def decode_each(self, *_: object, **__: object) -> list[Decoded]:
            raise ImageError(ErrorCode.CORRUPT, "a \ud800 of its own")

    fetched = FetchedObject(Source(0, "/x"), b"data", False, None, 0.0)
    policy = PixelPolicy(channels=1, height_px=4, width_px=4)
    rows = prepare_fetched([fetched], [policy], Limits(), Decoder(), Identifiers(), []).to_pylist()
    assert rows[0]["error_detail"] == "a \ufffd of its own"


@pytest.mark.s3
def test_a_list_may_name_what_no_store_takes(tmp_path: Path, s3: Any) -> None:
    good = s3.put("hostile-list/a.png", b"x")
    bad = [s3.uri(f"hostile-list/{'y' * 4096}"), s3.uri("hostile-list/nul\0"), "/" + "z" * 4096, "/a\0b"]
    pq.write_table(pa.table({"image": [good, *bad]}), tmp_path / "list.parquet")
    found = {o.uri: o.bytes for o in read_source(str(tmp_path / "list.parquet"))}
    assert found == {good: 1} | dict.fromkeys(bad)


def test_a_list_of_texts_that_are_none_is_refused(tmp_path: Path) -> None:
    invalid = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    pq.write_table(pa.table({"image": invalid}), tmp_path / "list.parquet")
    with pytest.raises(UsageError, match="has text in its column image"):
        read_source(str(tmp_path / "list.parquet"))


@pytest.mark.s3
def test_names_in_s3(s3: Any, tmp_path: Path) -> None:
    for name in NAMES:
        s3.put(f"hostile/{name}", name.encode())
    s3.put("hostile/surrogate.dcm", surrogate_dicom())
    info = index(s3.uri("hostile"), str(tmp_path / "manifest"), headers=True)
    table = read_manifest(info.uri)
    found = {row["uri"].removeprefix(s3.uri("hostile/")): row for row in table.to_pylist()}
    assert set(found) == {*NAMES, "surrogate.dcm"}
    assert found["surrogate.dcm"]["manufacturer"] == "\ufffdX"
    for name in NAMES:
        assert storage.fetch(found[name]["uri"]).data.decode() == name
