"""One spelling for every object."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.storage.uris import absolute, is_foreign, join, parent


def test_join_keeps_every_part_as_it_is() -> None:
    assert join("s3://b/", "a/../k", "", "x#?.png") == "s3://b/a/../k/x#?.png"
    assert join("/data/", "a b", "ü") == "/data/a b/ü"
    assert join("/", "a") == "/a"
    assert join("/data") == "/data"


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far" / "down").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "down")
    assert absolute("x/./y/") == f"{tmp_path}/x/y"
    assert absolute("file:///a%20b/c%23") == "/a b/c#"
    assert absolute("//a") == "/a"
    assert absolute("s3://b/p/../q/") == "s3://b/p/../q"
    # "link/.." is where the link leads, as open() sees it: not the folder the link lies in.
    assert absolute("link/../x") == f"{tmp_path}/far/x"


def test_parent() -> None:
    assert parent("/far/down") == "/far"
    assert parent("file:///caf%E9/a.csv") == "file:///caf%E9"
    assert parent("s3://b/lists/a.csv") == "s3://b/lists"
    assert parent("s3://b/a.csv") == "s3://b"


def test_schemes_that_no_store_here_knows() -> None:
    assert is_foreign("https://host/a.png")
    assert is_foreign("gs://bucket/a")
    for own in ("s3://b/a", "file:///a", "/a://b", "a/b"):
        assert not is_foreign(own)
