"""The archive of `headerkit`, and what is read of its objects."""

from __future__ import annotations

from pathlib import Path

import headerkit
import pytest

from ad_jobs.archive import headers
from ad_jobs.archive.fetching import Fetcher
from cluster import storage


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    folder = tmp_path / "mixed"
    for name, data in headerkit.OBJECTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def key(tmp_path: Path) -> Path:
    (tmp_path / "key").write_bytes(headerkit.KEY + b"\n")
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
