"""Members of a shard as its bytes go by, against tarfile as an independent reader."""

from __future__ import annotations

import hashlib
import io
import itertools
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ad_jobs.results import parts
from ad_jobs.results.heatmaps import member_name, pack
from ad_jobs.results.members import MARKS, Members, member_mark
from ad_jobs.results.parts import read_shard

SIZES = (1, 511, 512, 513, 5000, 1)


def shard() -> bytes:
    return pack((member_name(i, 0), bytes([i + 1]) * size) for i, size in enumerate(SIZES)).data


def taken(data: bytes, piece: int) -> Members:
    found = Members()
    for start in range(0, len(data), piece):
        found.take(memoryview(data)[start : start + piece])
    return found


def by_tarfile(data: bytes) -> tuple[int, int]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    return len(members), sum(member_mark(one.name, one.offset_data, one.size) for one in members) % MARKS


@pytest.mark.parametrize("piece", [1, 300, 512, 1000, 1024, 1 << 20])
def test_it_finds_what_tarfile_finds_however_the_bytes_come(piece: int) -> None:
    found = taken(shard(), piece)
    assert found.whole
    assert (found.count, found.marks) == by_tarfile(shard())
    assert found.count == len(SIZES)


def test_every_cut_is_noticed() -> None:
    data = shard()
    ends = len(data) - 1024
    for length in itertools.chain(range(0, ends, 97), (ends - 1, ends)):
        assert not taken(data[:length], 512).whole


def _at(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def _sealed(data: bytes) -> bytes:
    """The same, the first header's checksum right again."""
    blank = _at(data, 148, b" " * 8)
    return _at(blank, 148, b"%06o\0 " % sum(blank[:512]))


SECOND = 1024


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: _at(data, SECOND + 3, b"9"),
        lambda data: _at(data, SECOND + 400, b"x"),
        lambda data: _at(data, SECOND + 148, b"99"),
        lambda data: _at(data, SECOND + 124, b"-0000000010"),
        lambda data: _at(data, SECOND, b"\0"),
        lambda data: _sealed(_at(data, 156, b"5")),
        lambda data: _sealed(_at(data, 257, b"ustar ")),
        lambda data: _sealed(_at(data, 345, b"folder")),
        lambda data: _sealed(_at(data, 0, b"\xff")),
    ],
    ids=["name", "padding", "checksum", "size", "no name", "folder", "magic", "prefix", "not ASCII"],
)
def test_a_header_that_pack_does_not_write_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError, match=r"header|size|file|codec"):
        taken(spoil(shard()), 1 << 20)


def test_a_shard_is_hashed_behind_its_end_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "CHUNK_BYTES", 2048)
    (tmp_path / "heatmaps").mkdir()
    data = shard() + b"behind the end" * 1000
    (tmp_path / "heatmaps" / "a.tar").write_bytes(data)
    found = read_shard(str(tmp_path), "heatmaps/a.tar")
    assert found is not None
    assert (found[0].bytes, found[0].sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (found[0].members, found[1]) == by_tarfile(data)


def test_a_tar_without_its_end_is_none(tmp_path: Path) -> None:
    (tmp_path / "heatmaps").mkdir()
    (tmp_path / "heatmaps" / "a.tar").write_bytes(shard()[:-1024])
    assert read_shard(str(tmp_path), "heatmaps/a.tar") is None
