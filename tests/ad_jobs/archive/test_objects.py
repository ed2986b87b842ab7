"""An object's bytes by its URI: members of containers, in folders and on S3, and what is wrong with some of them."""

from __future__ import annotations

import errno
import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import containerkit as kit
import pytest
from scankit import dicom, png

from ad_jobs.archive import containers_gzip, objects
from ad_jobs.archive.fetching import FetchedObject, Source, fetch_all
from ad_jobs.archive.headers import HEADER_BYTES, Listed, header_columns
from ad_jobs.archive.sources import SourceObject, read_source
from ad_jobs.errors import ErrorCode, ImageError, JobError, UsageError
from cluster import storage

LIMIT = 1 << 20
# Nothing in it repeats: it lies in a ZIP as long as it is.
NOISE = b"".join(hashlib.sha256(bytes([i, j])).digest() for i in range(64) for j in range(64))
FILES = {"a/x.bin": b"x" * 5000, "noise": NOISE, "empty": b"", "50%/..b": b"odd", "IM1": dicom(1)}
CONTAINERS = {
    "x.zip": kit.zipped(FILES),
    "stored.zip": kit.zipped(FILES, zipfile.ZIP_STORED),
    "streamed.zip": kit.streamed_zip(FILES),
    "x.tar": kit.tarred(FILES),
    "x.tar.gz": kit.gzipped(kit.tarred(FILES)),
}


class Place:
    """A folder of a store."""

    def __init__(self, root: str) -> None:
        self.root = root

    def put(self, name: str, data: bytes) -> str:
        uri = f"{self.root}/{name}"
        storage.write_bytes(uri, data)
        return uri

    def objects(self) -> dict[str, SourceObject]:
        """What a listing finds, by name."""
        return {o.uri.removeprefix(f"{self.root}/"): o for o in read_source(self.root)}

    def fetched(self, *, by_uri_alone: bool = False) -> dict[str, FetchedObject]:
        """Everything that a listing finds, as a scan fetches it."""
        found = [
            Source(i, o.uri, o.bytes, None if by_uri_alone else o.etag, o.within)
            for i, o in enumerate(read_source(self.root))
        ]
        return {one.source.uri.removeprefix(f"{self.root}/"): one for one in fetch_all(found, LIMIT)}


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A folder of a store, with nothing in it."""
    if request.param == "disk":
        return Place(str(tmp_path / "root"))
    return Place(str(request.getfixturevalue("s3").uri(f"objects/{tmp_path.name}")))


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has opened no container yet."""
    monkeypatch.setattr(objects, "_DIRECTORIES", containers_gzip.Kept(objects._Directory))
    monkeypatch.setattr(objects, "_UNPACKED", containers_gzip.Kept(containers_gzip.UnpackedTar))


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is asked of the store, by name of the object, and how many bytes came."""
    made: list[tuple[str, int]] = []
    for name in ("fetch", "fetch_piece"):
        real = getattr(storage, name)

        def noted(uri: str, *args: Any, real: Any = real) -> storage.Fetched:
            found: storage.Fetched = real(uri, *args)
            made.append((uri.rpartition("/")[2], len(found.data)))
            return found

        monkeypatch.setattr(storage, name, noted)
    return made


def code(call: FetchedObject) -> ErrorCode | None:
    return None if call.error is None else call.error.code


def test_members_come_as_they_were_put_in(place: Place) -> None:
    for name, data in CONTAINERS.items():
        place.put(name, data)
    place.put("IM1.DCM.GZ", kit.gzipped(FILES["IM1"][:500]) + kit.gzipped(FILES["IM1"][500:]) + bytes(20))
    place.put("plain.zip!/m", b"plain")
    wanted = {f"{c}!/{m.replace('%', '%25')}": data for c in CONTAINERS for m, data in FILES.items()}
    wanted |= {"IM1.DCM.GZ!/IM1.DCM": FILES["IM1"], "plain.zip!/m": b"plain"}
    for fetched in (place.fetched(), place.fetched(by_uri_alone=True)):
        assert {name: one.data for name, one in fetched.items()} == wanted
        assert not any(one.changed for one in fetched.values())
    for name, o in place.objects().items():
        assert objects.fetch(o.uri, LIMIT) == (wanted[name], o.etag)
        # A HEAD may tell the time in whole seconds.
        assert objects.stat(o.uri)[:3] == o[:3]


def test_a_listed_member_is_one_ranged_read(place: Place, requests: list[tuple[str, int]]) -> None:
    for name in ("x.zip", "x.tar"):
        place.put(name, CONTAINERS[name])
    found = place.objects()
    for name in ("x.zip", "x.tar"):
        o = found[f"{name}!/IM1"]
        requests.clear()
        assert objects.fetch(o.uri, LIMIT, o.within, o.etag).data == FILES["IM1"]
        [(asked, came)] = requests
        assert asked == name
        assert came < len(FILES["IM1"]) + 1024 < len(CONTAINERS[name])


def test_a_zip_is_listed_by_its_end_alone(place: Place, requests: list[tuple[str, int]]) -> None:
    noise = b"".join(hashlib.sha256(i.to_bytes(4)).digest() for i in range(100_000))
    place.put("x.zip", kit.zipped({"a": noise}, zipfile.ZIP_STORED))
    requests.clear()
    assert list(place.objects()) == ["x.zip!/a"]
    assert sum(came for _, came in requests) < len(noise) // 5


def test_a_compressed_tar_is_unpacked_once(
    place: Place, requests: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers_gzip, "_STREAM_BYTES", 1 << 12)
    members = {f"{i:03}": NOISE[i : i + 2000] for i in range(60)}
    data = kit.gzipped(kit.tarred(members))
    place.put("x.tgz", data)
    assert len(place.objects()) == 60
    requests.clear()
    fetched = place.fetched()
    assert [one.data for one in fetched.values()] == list(members.values())
    # Once to be listed and once for all members.
    assert sum(came for _, came in requests) == 2 * len(data)


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_what_is_wrong_with_a_member_is_its_row(place: Place) -> None:
    whole = kit.zipped({"a": NOISE, "b": b"whole" * 100})
    place.put("encrypted.zip", kit.encrypted(whole))
    place.put("bzip2.zip", kit.zipped({"a": b"1" * 100}, zipfile.ZIP_BZIP2))
    place.put("flipped.zip", flip(whole, len(NOISE) // 2))
    place.put("lost.zip", flip(whole, whole.index(b"PK\3\4", 10)))
    place.put("sparse.tar", kit.sparse_tar())
    place.put("large.tar", kit.tarred({"a": bytes(LIMIT + 1), "b": b"1"}))
    inner = kit.zipped({"c": b"1"})
    nested = {"c.zip": inner, "d.tgz": kit.gzipped(inner), "e.tar": kit.tarred({"c": b"1"}), "f.zip": png(1)}
    place.put("nested.tar", kit.tarred(nested))
    place.put("nested.zip.gz", kit.gzipped(inner))
    place.put("cut.gz", kit.gzipped(NOISE)[:-9])
    place.put("none.gz", b"no gzip")
    place.put("crc.gz", flip(kit.gzipped(NOISE), -6 + len(kit.gzipped(NOISE))))
    place.put("large.gz", kit.gzipped(bytes(LIMIT + 1)))
    place.put("garbage.gz", kit.gzipped(b"1" * 20) + b"garbage")
    assert {name: code(one) for name, one in place.fetched().items()} == {
        "encrypted.zip!/a": "unsupported_member",
        "encrypted.zip!/b": "unsupported_member",
        "bzip2.zip!/a": "unsupported_member",
        "flipped.zip!/a": "corrupt",
        "flipped.zip!/b": None,
        "lost.zip!/a": None,
        "lost.zip!/b": "corrupt",
        "sparse.tar!/sparse.png": "unsupported_member",
        "sparse.tar!/plain.png": None,
        "large.tar!/a": "too_many_bytes",
        "large.tar!/b": None,
        "nested.tar!/c.zip": "nested_container",
        "nested.tar!/d.tgz": "nested_container",
        "nested.tar!/e.tar": "nested_container",
        # By its content it is a picture.
        "nested.tar!/f.zip": None,
        "nested.zip.gz!/nested.zip": "nested_container",
        "cut.gz!/cut": "truncated",
        "none.gz!/none": "corrupt",
        "crc.gz!/crc": "corrupt",
        "large.gz!/large": "too_many_bytes",
        "garbage.gz!/garbage": "corrupt",
    }


def test_a_container_that_cannot_be_opened_is_a_row_with_the_reason(place: Place) -> None:
    place.put("cut.zip", CONTAINERS["x.zip"][:-40])
    place.put("cut.tar", CONTAINERS["x.tar"][:3000])
    place.put("cut.tgz", CONTAINERS["x.tar.gz"][:3000])
    place.put("text.zip", b"text")
    fetched = place.fetched()
    assert {name: code(one) for name, one in fetched.items()} == {
        "cut.zip": "unreadable_container",
        "cut.tar": "unreadable_container",
        "cut.tgz": "unreadable_container",
        # What it is its content tells the decoder.
        "text.zip": None,
    }
    error = fetched["cut.zip"].error
    assert error is not None
    assert error.detail == "it has no central directory at its end"


def test_a_whole_container_in_an_older_manifest_is_fetched_as_before(place: Place) -> None:
    uri = place.put("x.zip", CONTAINERS["x.zip"])
    info = storage.stat(uri)
    [found] = fetch_all([Source(0, uri, info.bytes, info.etag)], LIMIT)
    assert found.data == CONTAINERS["x.zip"]


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.gz"])
def test_a_member_of_a_container_that_changed_is_read_as_it_is_now(place: Place, name: str) -> None:
    make = {"x.zip": kit.zipped, "x.tar": kit.tarred, "x.tar.gz": lambda f: kit.gzipped(kit.tarred(f))}.get(
        # The padding makes it another object of the store, and no other content.
        name,
        lambda f: kit.gzipped(f["x"]) + bytes(len(f)),
    )
    uri = place.put(name, make({"a": b"1" * 3000, "x": b"same", "gone": b"1"}))
    then = place.objects()
    place.fetched()
    place.put(name, make({"b": b"2" * 9000, "x": b"same"}))
    sources = [Source(i, o.uri, o.bytes, o.etag, o.within) for i, o in enumerate(then.values())]
    now = {one.source.uri.removeprefix(f"{uri}!/"): one for one in fetch_all(sources, LIMIT)}
    assert now["x"].data == b"same"
    assert now["x"].changed
    if name != "x.gz":
        assert code(now["a"]) == code(now["gone"]) == "not_found"
    storage.delete(uri)
    assert {code(one) for one in fetch_all(sources, LIMIT)} == {ErrorCode.NOT_FOUND}


def test_a_member_of_a_container_that_broke_says_so(place: Place) -> None:
    for name in ("x.zip", "x.tar", "x.tar.gz"):
        place.put(name, CONTAINERS[name])
    sources = [Source(i, o.uri, o.bytes, o.etag) for i, o in enumerate(place.objects().values())]
    for name in ("x.zip", "x.tar", "x.tar.gz"):
        place.put(name, CONTAINERS[name][:3000])
    assert {code(one) for one in fetch_all(sources, LIMIT)} == {ErrorCode.UNREADABLE_CONTAINER}


def test_a_link_out_of_the_archive_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "x.zip").write_bytes(CONTAINERS["x.zip"])
    (tmp_path / "root" / "x.zip").write_bytes(CONTAINERS["x.zip"])
    found = read_source(str(tmp_path / "root"))
    (tmp_path / "root" / "x.zip").unlink()
    (tmp_path / "root" / "x.zip").symlink_to(tmp_path / "x.zip")
    fetched = fetch_all([Source(i, o.uri, o.bytes, o.etag, o.within) for i, o in enumerate(found)], LIMIT)
    assert {code(one) for one in fetched} == {ErrorCode.NOT_FOUND}


def test_no_detail_names_a_container_or_a_member(place: Place) -> None:
    uri = place.put("Doe^J.zip", kit.encrypted(kit.zipped({"Doe^J": b"1"})))
    place.put("Doe^J 2.zip", CONTAINERS["x.zip"][:-40])
    place.put("Doe^J.gz", kit.gzipped(b"1")[:-4])
    sources = [Source(0, f"{uri}!/Doe^K"), Source(1, f"{uri}s!/Doe^K")]
    for one in [*place.fetched().values(), *fetch_all(sources, LIMIT)]:
        assert one.error is not None
        assert "Doe" not in one.error.detail


def test_headers_are_read_from_the_beginning_of_members(place: Place, requests: list[tuple[str, int]]) -> None:
    large = dicom(2, frames=200)
    assert len(large) > 2 * HEADER_BYTES
    for name, make in {"x.zip": kit.zipped, "x.tar": kit.tarred, "x.tgz": lambda f: kit.gzipped(kit.tarred(f))}.items():
        place.put(name, make({"IM1": large, "p.png": png(1)}))
    place.put("IM1.gz", kit.gzipped(large))
    place.put("cut.gz", kit.gzipped(large[:50]))
    # RFC 1952 2.2: several members, the first of them without content.
    place.put("members.gz", kit.gzipped(b"") + kit.gzipped(large[:1000]) + kit.gzipped(large[1000:]))
    found = place.objects()
    requests.clear()
    columns = {name: header_columns(Listed(o.uri, o.bytes, o.etag)) for name, o in found.items()}
    wanted = ("OT", 200, None)
    for name in ("x.zip!/IM1", "x.tar!/IM1", "x.tgz!/IM1", "IM1.gz!/IM1", "members.gz!/members"):
        assert tuple(columns[name][key] for key in ("modality", "frames", "header_error")) == wanted, name
    assert columns["x.zip!/p.png"] == {"kind": "png"}
    assert columns["cut.gz!/cut"] == {"kind": "other"}
    assert max(came for name, came in requests if name != "x.tgz") < HEADER_BYTES + 4096


def test_a_full_disk_blames_no_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(str(tmp_path))
    place.put("x.tgz", CONTAINERS["x.tar.gz"])

    class Full(io.BytesIO):
        def write(self, data: object, /) -> int:
            del data
            raise OSError(errno.ENOSPC, "No space left on device")

    sources = [Source(i, o.uri, o.bytes, o.etag) for i, o in enumerate(place.objects().values())]
    monkeypatch.setattr(containers_gzip.tempfile, "TemporaryFile", Full)

    with pytest.raises(JobError, match="set TMPDIR to a larger disk"):
        list(fetch_all(sources, LIMIT))


def test_a_list_may_name_members(tmp_path: Path) -> None:
    place = Place(str(tmp_path / "root"))
    place.put("x.zip", CONTAINERS["x.zip"])
    place.put("a.gz", kit.gzipped(b"1"))
    (tmp_path / "list.csv").write_text("image\nroot/x.zip!/IM1\nroot/x.zip!/gone\nroot/a.gz!/a\nroot/a.gz!/b\n")
    found = read_source(str(tmp_path / "list.csv"))
    assert [o.bytes for o in found] == [21, None, len(FILES["IM1"]), None]
    by_uri = place.objects()
    assert found[2].etag == by_uri["x.zip!/IM1"].etag
    with pytest.raises(ImageError, match="encrypted"):
        objects.fetch(place.put("y.zip", kit.encrypted(CONTAINERS["x.zip"])) + "!/IM1", LIMIT)


def test_a_file_is_named_as_a_listing_names_its_object(tmp_path: Path) -> None:
    packed, plain, several = (str(tmp_path / name) for name in ("one.dcm.gz", "one.dcm", "many.zip"))
    Path(packed).write_bytes(kit.gzipped(b"one"))
    Path(several).write_bytes(kit.zipped({"a/1": b"1", "2": b"2"}))
    assert objects.as_listed(packed) == f"{packed}!/one.dcm"
    assert objects.fetch(objects.as_listed(packed), 100).data == b"one"
    # What is not there, what lies in a container, and what is none whatever its name, stay what they are.
    for uri in (plain, str(tmp_path / "gone.zip"), f"{several}!/one.dcm.gz"):
        assert objects.as_listed(uri) == uri
    with pytest.raises(UsageError, match=r"one object.*many\.zip\. Name it as .*many\.zip!/a/1, or scan"):
        objects.as_listed(several)
    Path(several).write_bytes(b"no container")
    assert objects.as_listed(several) == several
