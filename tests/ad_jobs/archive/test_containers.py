"""What a listing makes of containers: members in URI order, each once; and of those that cannot be opened."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import containerkit as kit
import pytest

from ad_jobs.archive import containers_reading
from ad_jobs.archive.containers import with_members
from ad_jobs.archive.containers_names import known
from ad_jobs.archive.manifest import read_manifest
from ad_jobs.archive.sources import open_source, read_source
from ad_jobs.errors import UsageError
from ad_jobs.index import index
from cluster import storage

FILES = {"b.png": b"bb", "a/x.png": b"x" * 500, "é ü.dcm": b"", "a": b"file"}
MAKERS = {
    "x.zip": kit.zipped,
    "stored.ZIP": lambda files: kit.zipped(files, zipfile.ZIP_STORED),
    "streamed.zip": kit.streamed_zip,
    "x.tar": kit.tarred,
    "gnu.tar": lambda files: kit.tarred(files, tarfile.GNU_FORMAT),
    "ustar.tar": lambda files: kit.tarred(files, tarfile.USTAR_FORMAT),
    "x.tar.gz": lambda files: kit.gzipped(kit.tarred(files)),
    "x.tgz": lambda files: kit.gzipped(kit.tarred(files)),
}


def write(root: Path, objects: dict[str, bytes]) -> str:
    for name, data in objects.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


def listed(root: Path) -> tuple[list[str], dict[str, int]]:
    """The names below the root, checked to be in order, and what was left out."""
    listing = open_source(str(root))
    uris = [o.uri for o in listing.objects]
    assert uris == sorted(set(uris))
    return [uri.removeprefix(f"{root}/") for uri in uris], dict(listing.left_out)


@pytest.mark.parametrize("name", MAKERS)
def test_members_are_objects(name: str, tmp_path: Path) -> None:
    write(tmp_path, {name: MAKERS[name](FILES)})
    assert listed(tmp_path) == (sorted(f"{name}!/{member}" for member in FILES), {})
    container = storage.stat(f"{tmp_path}/{name}")
    for found in read_source(str(tmp_path)):
        assert found.bytes == len(FILES[found.uri.partition("!/")[2]])
        assert found.modified == container.modified
        place = known(found.etag)
        assert place is not None
        assert place.container_etag == container.etag


def test_everything_is_in_the_order_of_uris(tmp_path: Path) -> None:
    members = {"m": b"1", "n/o": b"2"}
    names = ["x.zip 2", "x.zip!-", "x.zip!", "x.zip.png", "x.zip ~/y", "x", "z", "x.zip!0/deep"]
    write(tmp_path, dict.fromkeys(names, b"plain") | {"x.zip": kit.zipped(members), "x.zip .tar": kit.tarred(members)})
    write(tmp_path, {"IM.dcm.gz": kit.gzipped(b"gz"), "IM.dcm.gz 1": b"plain"})
    wanted = [*names, *(f"{c}!/{m}" for c in ("x.zip", "x.zip .tar") for m in members)]
    assert listed(tmp_path) == (sorted([*wanted, "IM.dcm.gz!/IM.dcm", "IM.dcm.gz 1"]), {})


def test_a_file_with_the_separator_in_its_name_is_a_file(tmp_path: Path) -> None:
    write(tmp_path, {"a.zip!/x": b"plain", "b.zip!/c.zip": kit.zipped({"m": b"1"}), "d!/e": b"plain"})
    assert listed(tmp_path) == (["a.zip!/x", "b.zip!/c.zip!/m", "d!/e"], {})
    info = [storage.ObjectInfo("/r/a.zip", 5, "e", None), storage.ObjectInfo("/r/a.zip!/x", 5, "e", None)]
    assert [o.uri for o in with_members(info[1:], Counter(), None)] == ["/r/a.zip!/x"]


def test_a_file_goes_before_a_member_of_the_same_name(tmp_path: Path) -> None:
    write(tmp_path, {"a.zip": kit.zipped({"x": b"member", "y": b"other"}), "a.zip!/x": b"file"})
    assert listed(tmp_path) == (["a.zip!/x", "a.zip!/y"], {"replaced_members": 1})
    assert known(read_source(str(tmp_path))[0].etag) is None


HOSTILE = {
    "../../etc/passwd": "%2E%2E/%2E%2E/etc/passwd",
    "/etc/passwd": "/etc/passwd",
    "50%.png": "50%25.png",
    "..\\windows": "..\\windows",
    "new\nline": "new\nline",
    "A.png": "A.png",
    "a.png": "a.png",
    "x.zip!/y": "x.zip!/y",
    "...": "...",
}


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
def test_hostile_names_lead_nowhere_and_are_told_apart(name: str, tmp_path: Path) -> None:
    write(tmp_path / "root", {name: MAKERS[name](dict.fromkeys(HOSTILE, b"1"))})
    assert listed(tmp_path / "root")[0] == sorted(f"{name}!/{escaped}" for escaped in HOSTILE.values())
    # A manifest's objects lie below its root, by their URIs alone.
    info = index(str(tmp_path / "root"), str(tmp_path / "manifest"))
    assert read_manifest(info.uri).num_rows == len(HOSTILE)


def test_names_that_are_no_unicode_are_escaped(tmp_path: Path) -> None:
    archive = kit.zipped({"??.png": b"1", "nul?": b"2"}).replace(b"??.png", b"\xff\xfe.png").replace(b"nul?", b"nul\0")
    write(tmp_path, {"x.zip": archive})
    assert listed(tmp_path)[0] == ["x.zip!/%FF%FE.png", "x.zip!/nul%00"]


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_members_with_one_name_the_last_counts(name: str, tmp_path: Path) -> None:
    write(tmp_path, {name: MAKERS[name]([("a", b"first"), ("b", b"1"), ("a", b"second!"), ("./a", b"last")])})
    assert listed(tmp_path) == ([f"{name}!/a", f"{name}!/b"], {"replaced_members": 2})
    assert read_source(str(tmp_path))[0].bytes == 4


def test_links_and_devices_in_a_tar_are_left_out_and_counted(tmp_path: Path) -> None:
    kinds = {
        "symbolic": tarfile.SYMTYPE,
        "hard": tarfile.LNKTYPE,
        "pipe": tarfile.FIFOTYPE,
        "device": tarfile.CHRTYPE,
        "block": tarfile.BLKTYPE,
        "folder": tarfile.DIRTYPE,
    }
    write(tmp_path, {"x.tar": kit.special_tar(kinds), "y.png": b"1"})
    assert listed(tmp_path) == (["y.png"], {"links": 2, "special_files": 3, "empty_containers": 1})


def test_links_in_a_zip_are_left_out_and_counted(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("folder/", "")
        archive.writestr("folder/a", "1")
    write(tmp_path, {"x.zip": file.getvalue()})
    assert listed(tmp_path) == (["x.zip!/folder/a"], {"links": 1})


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
def test_an_empty_container_is_counted(name: str, tmp_path: Path) -> None:
    write(tmp_path, {name: MAKERS[name]({}), "y.png": b"1"})
    assert listed(tmp_path) == (["y.png"], {"empty_containers": 1})


def test_zip64_and_what_lies_before_a_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    wide = kit.zipped(FILES, zipfile.ZIP_STORED, comment=b"PK\5\6 in a comment")
    assert b"PK\6\6" in wide
    write(tmp_path, {"x.zip": wide, "y.zip": b"#!/bin/sh\n" * 30 + wide})
    monkeypatch.undo()
    assert listed(tmp_path) == (sorted(f"{c}.zip!/{m}" for c in "xy" for m in FILES), {})
    assert {o.bytes for o in read_source(str(tmp_path)) if o.uri.endswith("x.png")} == {500}


def damaged() -> dict[str, bytes]:
    """Containers that cannot be opened, by name."""
    archive, tape = kit.zipped({"a": bytes(range(256)) * 8, "b": b"2"}), kit.tarred({"a": b"1" * 2000, "b": b"2"})
    tgz = kit.gzipped(tape)
    flipped = bytearray(tgz)
    flipped[-6] ^= 1
    directory = archive.index(b"PK\1\2")
    header = bytearray(tape)
    header[512 + 2048 + 20] ^= 1
    return {
        "cut.zip": archive[:-30],
        "cut-directory.zip": archive[:directory],
        "directory.zip": archive[:directory] + b"XX" + archive[directory + 2 :],
        "cut-data.zip": archive[100:],
        "cut-data.tar": tape[:1500],
        "cut-at-a-member.tar": tape[: 512 + 2048],
        "header.tar": bytes(header),
        # A header that is zeroed is no end, and what follows one is not lost.
        "hole.tar": tape[:2560] + bytes(512) + tape[2560 + 512 :],
        "two.tar": tape + tape,
        "two.tgz": kit.gzipped(tape + tape),
        "cut.tgz": tgz[: len(tgz) // 2],
        "crc.tar.gz": bytes(flipped),
        "no-tar.tgz": kit.gzipped(b"no tar" * 200),
    }


@pytest.mark.parametrize("name", damaged())
def test_a_container_that_cannot_be_opened_is_one_object(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, {name: damaged()[name], "y.png": b"1"})
    assert listed(tmp_path) == (sorted([name, "y.png"]), {})
    assert "cannot be opened, each one object that fails: 1." in caplog.text
    with pytest.raises(UsageError, match=r"can be read whole.*unpack it"):
        read_source(f"{tmp_path}/{name}")


def test_what_is_no_container_but_for_its_name_is_an_object(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["a.zip", "a.tar", "a.tgz", "b.zip", "b.tar", "b.tgz"]
    write(tmp_path, {name: b"" if name[0] == "a" else b"something else" * 100 for name in names})
    assert listed(tmp_path) == (sorted(names), {})
    assert "cannot be opened" not in caplog.text


def bomb() -> bytes:
    """A ZIP whose two members are the same bytes (D. Fifield, A better zip bomb, 2019)."""
    archive = kit.zipped({"a": b"1" * 900}, zipfile.ZIP_STORED)
    start, end = archive.index(b"PK\1\2"), archive.index(b"PK\5\6")
    entry = archive[start:end]
    closing = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 2, 2, 2 * len(entry), start, 0)
    return archive[:end] + entry[:-1] + b"b" + closing


@pytest.mark.parametrize(
    ("name", "data", "limits"),
    [
        ("shared.zip", bomb(), {}),
        ("ratio.zip", kit.zipped({"a": bytes(100_000)}), {"FREE_BYTES": 1000}),
        ("ratio.tgz", kit.gzipped(kit.tarred({"a": bytes(100_000)})), {"FREE_BYTES": 1000}),
        ("members.tar", kit.tarred(dict.fromkeys("abcd", b"1")), {"MAX_MEMBERS": 3}),
        ("members.zip", kit.zipped(dict.fromkeys("abcd", b"1")), {"MAX_MEMBERS": 3}),
        ("total.tar", kit.tarred(dict.fromkeys("abcd", b"1" * 100)), {"MAX_TOTAL_BYTES": 399}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bombs_are_not_opened(
    name: str, data: bytes, limits: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {name: data})
    if limits:
        # Without the limit it is a container like any other.
        assert listed(tmp_path)[0][0].startswith(f"{name}!/")
    for limit, value in limits.items():
        monkeypatch.setattr(containers_reading, limit, value)
    assert listed(tmp_path) == ([name], {})


def test_a_pax_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("huge")
    info.type, info.size = tarfile.XHDTYPE, 1 << 33
    write(tmp_path, {"x.tar": info.tobuf(tarfile.GNU_FORMAT) + bytes(4096)})
    assert listed(tmp_path) == (["x.tar"], {})


def test_a_source_may_be_a_container(tmp_path: Path) -> None:
    for name, make in MAKERS.items():
        write(tmp_path, {name: make(FILES)})
        assert [o.uri for o in read_source(f"{tmp_path}/{name}")] == sorted(f"{tmp_path}/{name}!/{m}" for m in FILES)
    write(tmp_path, {"empty.zip": kit.zipped({}), "a.png.gz": kit.gzipped(b"1"), "folder.zip/a.png": b"1"})
    assert [o.uri for o in read_source(f"{tmp_path}/a.png.gz")] == [f"{tmp_path}/a.png.gz!/a.png"]
    assert [o.uri for o in read_source(f"{tmp_path}/folder.zip")] == [f"{tmp_path}/folder.zip/a.png"]
    with pytest.raises(UsageError, match="at least one object"):
        read_source(f"{tmp_path}/empty.zip")


def test_a_container_that_may_not_be_read_is_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"x.zip": kit.zipped(FILES), "y.png": b"1"})

    def refused(uri: str, *_: Any) -> storage.Fetched:
        raise storage.AccessDenied(uri, "no")

    monkeypatch.setattr(storage, "fetch_piece", refused)
    assert listed(tmp_path) == (["x.zip", "y.png"], {})


def test_a_container_that_is_replaced_meanwhile_ends_no_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"x.zip": kit.zipped(FILES), "y.png": b"1"})
    piece = storage.fetch_piece
    monkeypatch.setattr(storage, "fetch_piece", lambda *asked: piece(*asked)._replace(etag="another"))
    assert listed(tmp_path) == (["x.zip", "y.png"], {})


@pytest.mark.s3
def test_the_same_in_s3(s3: Any, tmp_path: Path) -> None:
    made = {name: make(FILES) for name, make in MAKERS.items()} | damaged() | {"a.png.gz": kit.gzipped(b"1")}
    made |= {"a.zip!/x": b"file", "y.png": b"1", "x.zip 2": b"1"}
    write(tmp_path, made)
    for name, data in made.items():
        s3.put(f"containers/{name}", data)
    there = read_source(s3.uri("containers"))
    assert [o.uri.removeprefix(s3.uri("containers/")) for o in there] == listed(tmp_path)[0]
    assert [o.bytes for o in there] == [o.bytes for o in read_source(str(tmp_path))]
    source = s3.uri("containers/x.tgz")
    assert [o.uri for o in read_source(source)] == sorted(f"{source}!/{member}" for member in FILES)
