"""Objects on a disk and in S3: found in one order, read by one GET, refused with one kind of error."""

from __future__ import annotations

import errno
import os
import pickle
import random
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster import storage
from cluster.storage import AccessDenied, NotFound, StorageError, TooLarge, Unreachable
from cluster.storage.listing import Walk, sort_bounded

# --- errors and URIs


@pytest.mark.parametrize("kind", [StorageError, NotFound, AccessDenied, Unreachable, TooLarge])
def test_errors_survive_pickling(kind: type[StorageError]) -> None:
    error = pickle.loads(pickle.dumps(kind("s3://b/k", "why")))
    assert type(error) is kind
    assert (error.uri, error.detail, str(error)) == ("s3://b/k", "why", "s3://b/k: why")


def test_join_keeps_every_part_as_it_is() -> None:
    assert storage.join("s3://b/", "a/../k", "", "x#?.png") == "s3://b/a/../k/x#?.png"
    assert storage.join("/data/", "a b", "ü") == "/data/a b/ü"
    assert storage.join("/", "a") == "/a"
    assert storage.join("/data") == "/data"


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far" / "down").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "down")
    assert storage.absolute("x/./y/") == f"{tmp_path}/x/y"
    assert storage.absolute("file:///a%20b/c%23") == "/a b/c#"
    assert storage.absolute("//a") == "/a"
    assert storage.absolute("s3://b/p/../q/") == "s3://b/p/../q"
    # "link/.." is where the link leads, as open() sees it: not the folder the link lies in.
    assert storage.absolute("link/../x") == f"{tmp_path}/far/x"
    assert storage.parent("far/down") == f"{tmp_path}/far"
    assert storage.parent("s3://b/lists/a.csv") == "s3://b/lists"


# --- order

NAMES = st.text(st.sampled_from("ab-.0~é𝄞" + "￿"), min_size=1, max_size=3).filter(lambda n: n not in (".", ".."))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join), max_size=12))
def test_walk_gives_every_file_in_order_of_its_whole_path(
    paths: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("walk")
    made = set()
    for path in paths:
        target = root / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"")
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue  # a name cannot be a file and a folder
        made.add(str(target))
    assert [file.path for file in Walk(str(root))] == sorted(made)


@given(items=st.lists(st.text(max_size=3)), rows=st.integers(1, 8))
def test_sort_bounded_is_sorted(items: list[str], rows: int) -> None:
    assert list(sort_bounded(items, key=str, rows=rows)) == sorted(items)


def test_sort_bounded_merges_spilled_runs_of_many_batches() -> None:
    items = [f"{number:06d}" for number in range(25_000)]
    random.Random(0).shuffle(items)
    assert list(sort_bounded(items, key=str, rows=4_000)) == sorted(items)


# --- local


def write(path: Path, data: bytes = b"x") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


AWKWARD = ["a-b", "a/x", "a0", ".hidden", "..b/c", "b ü#?%20.png", "file:", "𝄞", "￿"]


def test_list_objects_knows_size_etag_and_time(tmp_path: Path) -> None:
    for name in AWKWARD:
        write(tmp_path / name, name.encode())
    os.utime(tmp_path / "a0", ns=(0, 1_700_000_000_123_456_789))
    found = list(storage.list_objects(str(tmp_path)))
    assert [info.uri for info in found] == sorted(f"{tmp_path}/{name}" for name in AWKWARD)
    info = next(info for info in found if info.uri.endswith("a0"))
    assert info.bytes == 2
    assert info.etag == f"{1_700_000_000_123_456_789:x}-2"
    assert info.modified is not None
    assert info.modified.isoformat() == "2023-11-14T22:13:20.123456+00:00"
    for info in found:
        assert storage.stat(info.uri) == info
        assert storage.fetch(info.uri).etag == info.etag
    assert storage.list_names(str(tmp_path)) == sorted(AWKWARD)


def test_names_that_are_no_text_are_listed_last_and_can_be_fetched(tmp_path: Path) -> None:
    write(tmp_path / "zz")
    write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 1.dcm")), b"latin-1")
    plain, escaped = [info.uri for info in storage.list_objects(str(tmp_path))]
    assert plain.endswith("/zz")
    assert escaped == f"file://{tmp_path}/caf%E9%201.dcm"
    escaped.encode()  # can be stored in a table
    assert storage.fetch(escaped).data == b"latin-1"
    assert storage.stat(escaped).bytes == 7
    assert storage.absolute(escaped) == escaped
    name = storage.list_names(str(tmp_path))[0]
    assert storage.join(str(tmp_path), name) == escaped


def test_links_never_lead_out_of_the_root(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "root"
    write(root / "in" / "a")
    write(tmp_path / "root-too" / "secret")  # begins like the root, and is not inside
    (root / "b-file").symlink_to(root / "in" / "a")
    (root / "folder-inside").symlink_to(root / "in")
    (root / "loop").symlink_to(root)
    (root / "folder-outside").symlink_to(tmp_path / "root-too")
    (root / "file-outside").symlink_to(tmp_path / "root-too" / "secret")
    (root / "nowhere").symlink_to(root / "gone")
    os.mkfifo(root / "pipe")
    assert storage.list_names(str(root)) == ["b-file", "in/a"]
    assert "5 symbolic links" in caplog.text
    (tmp_path / "alias").symlink_to(root)
    assert storage.list_names(str(tmp_path / "alias")) == ["b-file", "in/a"]


def test_a_pipe_is_no_object_and_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (storage.fetch, storage.stat, lambda uri: storage.fetch_range(uri, 0, 1)):
        with pytest.raises(NotFound, match="not a regular file"):
            read(str(tmp_path / "pipe"))


def test_local_fetch_and_its_refusals(tmp_path: Path) -> None:
    uri = write(tmp_path / "a", b"0123456789")
    assert storage.fetch(uri, max_bytes=10).data == b"0123456789"
    with pytest.raises(TooLarge, match="10 bytes, more than the limit of 9"):
        storage.fetch(uri, max_bytes=9)
    assert storage.fetch_range(uri, 3, 4) == b"3456"
    assert storage.fetch_range(uri, 8, 100) == b"89"
    assert storage.fetch_range(uri, 10, 1) == b""
    assert storage.fetch_range(uri, 0, 0) == b""
    for missing in ("gone", "a/below-a-file", ".", "x" * 300, "nul\0"):
        with pytest.raises(NotFound):
            storage.fetch(f"{tmp_path}/{missing}")
        assert not storage.exists(f"{tmp_path}/{missing}")
    for missing in ("gone", "a"):
        with pytest.raises(NotFound):
            list(storage.list_objects(f"{tmp_path}/{missing}"))
        assert not storage.is_folder(f"{tmp_path}/{missing}")
    assert storage.is_folder(str(tmp_path))
    (tmp_path / "empty").mkdir()
    assert list(storage.list_objects(str(tmp_path / "empty"))) == []
    assert not storage.is_folder(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EACCES, AccessDenied), (errno.EIO, Unreachable), (errno.ESTALE, Unreachable), (errno.ELOOP, NotFound)],
)
def test_a_folder_that_refuses_ends_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StorageError]
) -> None:
    write(tmp_path / "open" / "a")
    write(tmp_path / "shut" / "b")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("shut"):
            raise OSError(number, os.strerror(number), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(kind, match="shut") as caught:
        list(storage.list_objects(str(tmp_path)))
    assert type(caught.value) is kind


def test_what_vanishes_while_listing_is_no_error(tmp_path: Path) -> None:
    for name in ("a", "b/x", "c"):
        write(tmp_path / name)
    listing = storage.list_objects(str(tmp_path))
    assert next(listing).uri == f"{tmp_path}/a"
    (tmp_path / "b" / "x").unlink()
    (tmp_path / "b").rmdir()
    (tmp_path / "c").unlink()
    assert list(listing) == []


def test_write_replaces_whole_files_and_leaves_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{tmp_path}/deep/down/a"
    storage.write_bytes(uri, b"old")
    storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"new"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        storage.write_bytes(uri, b"newer")
    assert storage.read_bytes(uri) == b"new"
    assert storage.list_names(str(tmp_path)) == ["deep/down/a"]
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)


def test_folders_are_copied_both_ways(tmp_path: Path) -> None:
    for name in AWKWARD:
        write(tmp_path / "from" / name, name.encode())
    storage.upload_folder(tmp_path / "from", str(tmp_path / "up"))
    storage.download_folder(str(tmp_path / "up"), tmp_path / "down")
    assert {n: (tmp_path / "down" / n).read_bytes() for n in storage.list_names(str(tmp_path / "down"))} == {
        name: name.encode() for name in AWKWARD
    }


def test_local_filesystem(tmp_path: Path) -> None:
    filesystem, path = storage.filesystem(str(tmp_path / "a b"))
    with filesystem.open_output_stream(path) as out:
        out.write(b"x")
    assert (tmp_path / "a b").read_bytes() == b"x"


# --- S3, the real server


KEYS = ("a-b", "a/x", "a0", "b ü#?%20+&=.png", "..b", "𝄞", "￿", "deep/er/c")


@pytest.fixture(scope="module")
def prefix(s3: Any) -> str:
    for key in KEYS:
        s3.put(f"names/{key}", key.encode())
    s3.put("names/marker/", b"")
    return str(s3.uri("names"))


@pytest.mark.s3
class TestS3:
    def test_listing_is_in_code_point_order_whatever_the_server_does(self, prefix: str) -> None:
        found = list(storage.list_objects(prefix))
        assert [info.uri for info in found] == sorted(f"{prefix}/{key}" for key in KEYS)
        assert storage.list_names(prefix + "/") == sorted(KEYS)
        for info in found:
            key = info.uri.removeprefix(f"{prefix}/")
            assert info.bytes == len(key.encode())
            assert info.modified is not None
            assert info.modified.utcoffset() is not None
            assert storage.fetch(info.uri, max_bytes=info.bytes) == (key.encode(), info.etag)
            assert storage.stat(info.uri)._replace(modified=info.modified) == info

    def test_more_keys_than_one_answer_holds(self, s3: Any) -> None:
        from concurrent.futures import ThreadPoolExecutor

        keys = [f"many/{number % 7}/{number:04d}" for number in range(1_200)]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda key: s3.put(key, b"1"), keys))
        assert [info.uri for info in storage.list_objects(s3.uri("many"))] == sorted(map(s3.uri, keys))

    def test_a_prefix_is_a_folder(self, s3: Any, prefix: str) -> None:
        s3.put("names-too", b"")
        assert storage.list_names(f"{prefix}/a") == ["x"]
        assert storage.is_folder(prefix)
        assert not storage.is_folder(f"{prefix}/a-b")
        assert not storage.is_folder(s3.uri("nam"))
        assert not storage.exists(prefix)
        assert not storage.exists("s3://archive")
        assert storage.exists(f"{prefix}/a-b")

    @pytest.mark.parametrize("uri", ["s3://no-such-bucket/a", "s3://", "s3://Bad_Bucket!/a", "s3://archive/gone"])
    def test_missing(self, s3: Any, uri: str) -> None:
        assert s3.bucket == "archive"
        for read in (storage.fetch, storage.stat, lambda uri: list(storage.list_objects(uri))):
            with pytest.raises(NotFound):
                read(uri)

    def test_check_bucket(self, s3: Any) -> None:
        storage.check_bucket(s3.uri("any/thing"))
        storage.check_bucket("/no/bucket")
        with pytest.raises(NotFound):
            storage.check_bucket("s3://no-such-bucket/a")

    @pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
    def test_wrong_credentials(self, prefix: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setenv(name, "wrong")
        for read in (storage.fetch, storage.stat, storage.exists, lambda uri: list(storage.list_objects(uri))):
            with pytest.raises(AccessDenied):
                read(f"{prefix}/a0")
        with pytest.raises(AccessDenied):
            storage.write_bytes(f"{prefix}/a0", b"")

    def test_no_credentials(self, prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        with pytest.raises(AccessDenied, match="credentials"):
            storage.fetch(f"{prefix}/a0")

    def test_too_large(self, prefix: str) -> None:
        with pytest.raises(TooLarge, match="2 bytes, more than the limit of 1"):
            storage.fetch(f"{prefix}/a0", max_bytes=1)

    def test_ranges(self, s3: Any) -> None:
        uri, empty = s3.put("range", b"0123456789"), s3.put("empty", b"")
        assert storage.fetch_range(uri, 3, 4) == b"3456"
        assert storage.fetch_range(uri, 8, 100) == b"89"
        assert storage.fetch_range(uri, 10, 1) == b""
        assert storage.fetch_range(empty, 0, 10) == b""
        assert storage.fetch(empty).data == b""

    def test_write_delete_and_copies(self, s3: Any, tmp_path: Path) -> None:
        for name in ("a b/ü", "c", "big"):
            write(tmp_path / "from" / name, b"x" * (9_000_000 if name == "big" else 3))
        storage.upload_folder(tmp_path / "from", s3.uri("copies"))
        storage.download_folder(s3.uri("copies"), tmp_path / "to")
        assert storage.list_names(str(tmp_path / "to")) == ["a b/ü", "big", "c"]
        assert (tmp_path / "to" / "big").stat().st_size == 9_000_000
        storage.write_bytes(s3.uri("copies/c"), b"new")
        assert storage.read_bytes(s3.uri("copies/c")) == b"new"
        storage.delete(s3.uri("copies/c"))
        storage.delete(s3.uri("copies/c"))
        assert not storage.exists(s3.uri("copies/c"))

    def test_pyarrow_sees_the_same_store_and_carries_no_secret(self, s3: Any) -> None:
        filesystem, path = storage.filesystem(s3.uri("arrow/a b.bin"))
        pickled = pickle.dumps(filesystem)
        assert s3.env["AWS_SECRET_ACCESS_KEY"].encode() not in pickled
        with pickle.loads(pickled).open_output_stream(path) as out:
            out.write(b"by pyarrow")
        assert storage.read_bytes(s3.uri("arrow/a b.bin")) == b"by pyarrow"

    def test_many_threads_share_one_client(self, prefix: str) -> None:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(lambda _: storage.fetch(f"{prefix}/a0").data, range(100))) == {b"a0"}


# --- any name


def test_random_names_round_trip(tmp_path: Path) -> None:
    draw = random.Random(1)
    letters = string.printable.replace("/", "").replace("\0", "") + "äß日本"
    names = {"".join(draw.choices(letters, k=12)) for _ in range(50)}
    for name in names:
        storage.write_bytes(storage.join(str(tmp_path), name), name.encode())
    assert set(storage.list_names(str(tmp_path))) == names
    assert all(
        storage.fetch(i.uri).data.decode() == i.uri.rpartition("/")[2] for i in storage.list_objects(str(tmp_path))
    )
