"""The contract that every store keeps, on a disk and on a real S3 server alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import storage
from cluster.storage import Exists, NotFound, StorageError, TooLarge, uris

# Names that a listing may put in another order, an escape may change, or a tool may take for a folder.
AWKWARD = ("a-b", "a/x", "a0", ".hidden", "..b/c", "b ü#?%20+&=.png", "file:", "𝄞", "￿", "deep/er/c")


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of a store, with nothing in it."""
    if request.param == "disk":
        return str(tmp_path / "store")
    return str(request.getfixturevalue("s3").uri(f"store/{tmp_path.name}"))


def test_a_listing_is_in_code_point_order_and_knows_what_a_get_tells(root: str) -> None:
    for name in AWKWARD:
        storage.write_bytes(storage.join(root, name), name.encode())
    found = list(storage.list_objects(root))
    assert [info.uri for info in found] == sorted(f"{root}/{name}" for name in AWKWARD)
    assert storage.list_names(root) == sorted(AWKWARD)
    for info in found:
        name = info.uri.removeprefix(f"{root}/")
        assert info.bytes == len(name.encode())
        assert info.modified is not None
        assert info.modified.utcoffset() is not None
        assert storage.fetch(info.uri, max_bytes=info.bytes) == (name.encode(), info.etag)
        # A HEAD may tell the time in whole seconds.
        assert storage.stat(info.uri)._replace(modified=info.modified) == info


def test_a_folder_is_where_objects_lie(root: str) -> None:
    storage.write_bytes(f"{root}/a/x", b"")
    assert storage.is_folder(root)
    assert storage.is_folder(f"{root}/a")
    assert not storage.is_folder(f"{root}/a/x")
    assert not storage.is_folder(f"{root}/b")
    assert storage.exists(f"{root}/a/x")
    assert not storage.exists(f"{root}/a")
    storage.check_bucket(root)


def test_what_is_larger_than_its_reader_allows_is_not_read(root: str) -> None:
    storage.write_bytes(f"{root}/a", b"0123456789")
    assert storage.fetch(f"{root}/a", max_bytes=10).data == b"0123456789"
    with pytest.raises(TooLarge, match="10 bytes, more than the limit of 9"):
        storage.fetch(f"{root}/a", max_bytes=9)


def test_ranges_end_where_the_object_does(root: str) -> None:
    uri, empty = f"{root}/a", f"{root}/empty"
    storage.write_bytes(uri, b"0123456789")
    storage.write_bytes(empty, b"")
    assert storage.fetch_range(uri, 3, 4) == b"3456"
    assert storage.fetch_range(uri, 8, 100) == b"89"
    assert storage.fetch_range(uri, 10, 1) == b""
    assert storage.fetch_range(uri, 0, 0) == b""
    assert storage.fetch_range(empty, 0, 10) == b""
    assert storage.fetch(empty).data == b""


def test_a_piece_has_the_etag_of_its_object(root: str) -> None:
    uri = f"{root}/a"
    storage.write_bytes(uri, b"0123456789")
    assert storage.fetch_piece(uri, 3, 4) == (b"3456", storage.stat(uri).etag)
    assert storage.fetch_piece(uri, 10, 1).data == b""


def test_a_write_replaces_and_a_deletion_may_come_twice(root: str) -> None:
    uri = f"{root}/deep/down/a"
    storage.write_bytes(uri, b"old")
    storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"new"
    assert storage.list_names(root) == ["deep/down/a"]
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)
    with pytest.raises(NotFound):
        storage.read_bytes(uri)


def test_what_is_created_was_not_there_before(root: str) -> None:
    uri = f"{root}/deep/lock"
    assert storage.create_bytes(uri, b"first")
    with pytest.raises(Exists):
        storage.create_bytes(uri, b"second")
    assert storage.read_bytes(uri) == b"first"


def test_names_that_begin_alike_are_found_beside_each_other(root: str) -> None:
    assert storage.beginning_with(f"{root}/run.lock") == []
    for name in ("run.lock", "run.lock.1", "run.json", "run.lock.d/inside"):
        storage.write_bytes(f"{root}/{name}", b"")
    found = set(storage.beginning_with(f"{root}/run.lock"))
    assert {f"{root}/run.lock", f"{root}/run.lock.1"} <= found
    assert not {f"{root}/run.json", f"{root}/run.lock.d/inside"} & found


def test_a_folder_is_copied_to_a_store(root: str, tmp_path: Path) -> None:
    # "big" goes to S3 in several parts.
    written = {name: name.encode() for name in AWKWARD} | {"big": b"x" * 9_000_000}
    for name, data in written.items():
        storage.write_bytes(storage.join(f"{tmp_path}/from", name), data)
    for name in written:
        path = uris.local_path(storage.join(f"{tmp_path}/from", name))
        storage.upload_file(Path(path), storage.join(root, name))
    assert {name: storage.read_bytes(storage.join(root, name)) for name in storage.list_names(root)} == written


def test_pyarrow_writes_where_the_store_reads(root: str) -> None:
    # On a disk pyarrow makes no folders.
    storage.write_bytes(f"{root}/other", b"")
    filesystem, path = storage.filesystem(f"{root}/a b")
    with filesystem.open_output_stream(path) as out:
        out.write(b"x")
    assert storage.read_bytes(f"{root}/a b") == b"x"


@pytest.mark.parametrize(
    "function",
    [
        storage.fetch,
        storage.read_bytes,
        storage.stat,
        storage.exists,
        storage.is_folder,
        storage.list_objects,
        storage.list_names,
        storage.delete,
        storage.check_bucket,
        storage.filesystem,
    ],
)
def test_a_relative_path_is_refused(
    function: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_bytes(b"here, but not elsewhere")
    with pytest.raises(StorageError, match="a: a relative path"):
        function("a")
    assert (tmp_path / "a").exists()
