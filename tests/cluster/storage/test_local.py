"""Objects on a disk: names, links and files of every kind, and what the operating system refuses."""

from __future__ import annotations

import errno
import os
import random
import resource
import socket
import string
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster import storage
from cluster.storage import AccessDenied, Full, LeftOut, NotFound, StorageError, Unreachable


def write(path: Path, data: bytes = b"x") -> str:
    """The URI of a new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def test_etag_and_time_are_those_of_the_file(tmp_path: Path) -> None:
    uri = write(tmp_path / "a0", b"a0")
    os.utime(uri, ns=(0, 1_700_000_000_123_456_789))
    info = storage.stat(uri)
    assert info.etag == f"{1_700_000_000_123_456_789:x}-2"
    assert info.modified is not None
    assert info.modified.isoformat() == "2023-11-14T22:13:20.123456+00:00"


def test_names_that_are_no_text_are_listed_last_and_can_be_fetched(tmp_path: Path) -> None:
    write(tmp_path / "zz")
    write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 1.dcm")), b"latin-1")
    plain, escaped = [info.uri for info in storage.list_objects(str(tmp_path))]
    assert plain.endswith("/zz")
    assert escaped == f"file://{tmp_path}/caf%E9%201.dcm"
    # It can be stored in a table.
    escaped.encode()
    assert storage.fetch(escaped).data == b"latin-1"
    assert storage.stat(escaped).bytes == 7
    assert storage.absolute(escaped) == escaped
    name = storage.list_names(str(tmp_path))[0]
    assert storage.join(str(tmp_path), name) == escaped


def test_random_names_round_trip(tmp_path: Path) -> None:
    draw = random.Random(1)
    letters = string.printable.replace("/", "").replace("\0", "") + "äß日本"
    names = {"".join(draw.choices(letters, k=12)) for _ in range(50)}
    for name in names:
        storage.write_bytes(storage.join(str(tmp_path), name), name.encode())
    assert set(storage.list_names(str(tmp_path))) == names
    found = [info.uri for info in storage.list_objects(str(tmp_path))]
    assert [storage.fetch(uri).data.decode() for uri in found] == [uri.rpartition("/")[2] for uri in found]


def test_links_never_lead_out_of_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root / "in" / "a")
    # It begins like the root, and is not inside.
    write(tmp_path / "root-too" / "secret")
    (root / "b-file").symlink_to(root / "in" / "a")
    (root / "folder-inside").symlink_to(root / "in")
    (root / "loop").symlink_to(root)
    (root / "folder-outside").symlink_to(tmp_path / "root-too")
    (root / "file-outside").symlink_to(tmp_path / "root-too" / "secret")
    (root / "nowhere").symlink_to(root / "gone")
    (root / "into-a-file").symlink_to(root / "in" / "a" / "below")
    (root / "itself").symlink_to("itself")
    (root / "one").symlink_to("other")
    (root / "other").symlink_to("one")
    os.mkfifo(root / "pipe")
    assert storage.list_names(str(root)) == ["b-file", "in/a"]
    left_out: Counter[LeftOut] = Counter()
    assert len(list(storage.list_objects(str(root), left_out))) == 2
    assert left_out == {LeftOut.LINK: 9, LeftOut.SPECIAL: 1}
    (tmp_path / "alias").symlink_to(root)
    assert storage.list_names(str(tmp_path / "alias")) == ["b-file", "in/a"]


def test_a_pipe_is_no_object_and_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (storage.fetch, storage.stat, lambda uri: storage.fetch_range(uri, 0, 1)):
        with pytest.raises(NotFound, match="not a regular file"):
            read(str(tmp_path / "pipe"))


def test_what_is_no_file_is_not_found(tmp_path: Path) -> None:
    write(tmp_path / "a")
    for missing in ("gone", "a/below-a-file", ".", "x" * 300, "nul\0"):
        with pytest.raises(NotFound):
            storage.fetch(f"{tmp_path}/{missing}")
        assert not storage.exists(f"{tmp_path}/{missing}")
    for missing in ("gone", "a"):
        with pytest.raises(NotFound):
            list(storage.list_objects(f"{tmp_path}/{missing}"))
        assert not storage.is_folder(f"{tmp_path}/{missing}")


def test_pipes_sockets_and_devices_are_counted_and_not_found(tmp_path: Path) -> None:
    write(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening, working_in(tmp_path):
        listening.bind("socket")
    (tmp_path / "device").symlink_to("/dev/null")
    left_out: Counter[LeftOut] = Counter()
    assert [info.uri for info in storage.list_objects(str(tmp_path), left_out)] == [f"{tmp_path}/a"]
    assert left_out == {LeftOut.SPECIAL: 2, LeftOut.LINK: 1}
    for name in ("pipe", "socket", "device"):
        with pytest.raises(NotFound):
            storage.fetch(f"{tmp_path}/{name}")


def test_a_name_longer_than_the_system_takes_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "a")
    folder = os.open(tmp_path, os.O_RDONLY)
    # A path is taken in pieces where it is too long as a whole.
    for _ in range(17):
        os.mkdir("d" * 250, dir_fd=folder)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(os.open("deep", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.close(folder)
    left_out: Counter[LeftOut] = Counter()
    assert [info.uri for info in storage.list_objects(str(tmp_path), left_out)] == [f"{tmp_path}/a"]
    assert left_out == {LeftOut.TOO_LONG: 1}


def test_what_became_a_link_out_of_its_folder_is_not_found(tmp_path: Path) -> None:
    root = tmp_path / "root"
    uri = write(root / "in" / "a", b"before")
    write(tmp_path / "outside" / "a", b"secret")
    (root / "link").symlink_to("in/a")
    assert storage.fetch(uri, within=str(root)).data == b"before"
    assert storage.fetch(f"{root}/link", within=str(root)).data == b"before"
    Path(uri).unlink()
    Path(uri).symlink_to(tmp_path / "outside" / "a")
    with pytest.raises(NotFound, match="link out of the archive") as caught:
        storage.fetch(uri, within=str(root))
    # Neither is told where it leads.
    assert "outside" not in str(caught.value)
    Path(uri).unlink()
    (root / "in").rmdir()
    (root / "in").symlink_to(tmp_path / "outside")
    with pytest.raises(NotFound):
        storage.fetch(uri, within=str(root))
    (tmp_path / "alias").symlink_to(root)
    write(root / "b", b"there")
    assert storage.fetch(f"{tmp_path}/alias/b", within=f"{tmp_path}/alias").data == b"there"


def test_an_empty_folder_has_no_objects_and_is_none(tmp_path: Path) -> None:
    assert list(storage.list_objects(str(tmp_path))) == []
    assert not storage.is_folder(str(tmp_path))


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EACCES, AccessDenied), (errno.EIO, Unreachable), (errno.ESTALE, Unreachable), (errno.ELOOP, NotFound)],
)
def test_a_folder_that_refuses_ends_the_listing_unless_it_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StorageError]
) -> None:
    write(tmp_path / "open" / "a")
    write(tmp_path / "shut" / "b")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("shut"):
            raise OSError(number, os.strerror(number), path)
        return scandir(path)

    # No disk fails on demand, and to root no folder is shut.
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(kind, match="shut") as caught:
        list(storage.list_objects(str(tmp_path)))
    assert type(caught.value) is kind
    left_out: Counter[LeftOut] = Counter()
    counted = storage.list_objects(str(tmp_path), left_out)
    if kind is AccessDenied:
        assert [info.uri for info in counted] == [f"{tmp_path}/open/a"]
        assert left_out == {LeftOut.UNREADABLE: 1}
    else:
        # A disk that fails must not make an archive smaller.
        with pytest.raises(kind):
            list(counted)


def test_what_vanishes_while_listing_is_no_error(tmp_path: Path) -> None:
    for name in ("a", "b/x", "c"):
        write(tmp_path / name)
    listing = storage.list_objects(str(tmp_path))
    assert next(listing).uri == f"{tmp_path}/a"
    (tmp_path / "b" / "x").unlink()
    (tmp_path / "b").rmdir()
    (tmp_path / "c").unlink()
    assert list(listing) == []


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """A block in `folder`: the path of a socket has 107 bytes at most."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def small_files(most_bytes: int) -> Iterator[None]:
    """A block in which no file of this process grows beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_without_room_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    uri = write(tmp_path / "deep" / "a", b"old")
    with small_files(100_000), pytest.raises(Full):
        storage.write_bytes(uri, b"x" * 200_000)
    assert storage.read_bytes(uri) == b"old"
    assert storage.list_names(str(tmp_path)) == ["deep/a"]
