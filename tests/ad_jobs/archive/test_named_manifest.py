"""What is taken for a manifest: anyone who writes to an archive may put files of its names into it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ad_jobs.archive.manifest import read_manifest
from ad_jobs.archive.manifest_record import find_manifest, manifest_info
from ad_jobs.archive.sources import read_source
from ad_jobs.errors import RetroscanError, UsageError
from ad_jobs.index import index
from cluster import storage
from cluster.storage.uris import TEMPORARY


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive of two files, and a secret beside it."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(name.encode())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.png").write_bytes(b"secret")
    return folder


def names(source: str) -> list[str]:
    return [found.uri.rpartition("/")[2] for found in read_source(source)]


def rewritten(manifest: Path, uris: list[str], *, seal: bool = True, **changes: Any) -> None:
    """The manifest with other URIs, and a record that fits: what a forger can do."""
    part = manifest / "part-00000.parquet"
    table = pq.read_table(part).slice(0, len(uris))
    pq.write_table(table.set_column(1, table.schema.field("uri"), pa.array(uris)), part)
    record = json.loads((manifest / "manifest.json").read_text()) | changes
    del record["seal"]
    digest = hashlib.sha256(part.read_bytes()).hexdigest()
    record["parts"] = [{"name": part.name, "rows": len(uris), "sha256": digest}]
    record["objects"] = len(uris)
    if seal:
        record["seal"] = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    (manifest / "manifest.json").write_text(json.dumps(record))


def test_an_archive_that_holds_a_manifests_files_is_an_archive(
    archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index(str(tmp_path / "elsewhere"), str(tmp_path / "manifest"))
    for name in ("manifest.json", "part-00000.parquet"):
        shutil.copy(tmp_path / "manifest" / name, archive / name)
    assert names(str(archive)) == ["a.png", "b.png", "manifest.json", "part-00000.parquet"]
    assert f"name it manifest:{archive}" in caplog.text
    # Whoever names it says so himself.
    assert names(f"manifest:{archive}") == ["secret.png"]
    info = index(str(archive), str(tmp_path / "out"))
    assert (info.objects, info.root) == (4, str(archive))


def test_an_archive_may_hold_a_file_of_a_parts_name(archive: Path) -> None:
    (archive / "part-00000.parquet").write_bytes(b"anything")
    assert names(str(archive)) == ["a.png", "b.png", "part-00000.parquet"]


def test_a_manifest_lists_nothing_outside_of_its_source(archive: Path, tmp_path: Path) -> None:
    secret = f"{tmp_path}/elsewhere/secret.png"
    for number, uri in enumerate((secret, f"{archive}/../elsewhere/secret.png", f"file://{archive}/%2E%2E/x")):
        manifest = tmp_path / f"manifest-{number}"
        index(str(archive), str(manifest))
        rewritten(manifest, [f"{archive}/a.png", uri])
        for source in (str(manifest), f"manifest:{manifest}"):
            with pytest.raises(UsageError, match="lie below the folder"):
                read_source(source)
        with pytest.raises(UsageError, match="lie below the folder"):
            read_manifest(str(manifest))


def test_names_with_dots_and_escapes_lie_below_their_source(tmp_path: Path) -> None:
    folder = tmp_path / "odd ü#%,"
    folder.mkdir()
    for name in ("..a", "b..", "%2E%2E", "x"):
        (folder / name).write_bytes(b"x")
    (folder / "\udce9").write_bytes(b"x")
    index(str(folder), str(tmp_path / "manifest"))
    assert read_source(str(tmp_path / "manifest")) == read_source(str(folder))
    assert len(read_source(str(folder))) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"parts": [{"name": "../../part-00000.parquet", "rows": 2, "sha256": "0"}]},
        {"objects": 3},
        {"source": "/"},
        {"root": "/"},
        {"root": None},
        {"seal": "0" * 64},
    ],
)
def test_a_record_that_was_changed_is_none(archive: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    index(str(archive), str(tmp_path / "manifest"))
    path = tmp_path / "manifest" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert find_manifest(str(tmp_path / "manifest")) is None
    with pytest.raises(UsageError, match="finished"):
        read_source(str(tmp_path / "manifest"))
    with pytest.raises(UsageError, match="written last and not changed"):
        manifest_info(f"manifest:{tmp_path}/manifest")


def test_a_manifest_of_a_list_is_named_as_such(archive: Path, tmp_path: Path) -> None:
    assert archive == tmp_path / "archive"
    (tmp_path / "list.csv").write_text("image\narchive/a.png\nelsewhere/secret.png\n")
    index(str(tmp_path / "list.csv"), str(tmp_path / "manifest"))
    with pytest.raises(UsageError, match="named as such") as caught:
        read_source(str(tmp_path / "manifest"))
    assert f"manifest:{tmp_path}/manifest" in str(caught.value)
    assert names(f"manifest:{tmp_path}/manifest") == ["a.png", "secret.png"]


def test_an_indexed_manifest_keeps_the_root_of_the_first(archive: Path, tmp_path: Path) -> None:
    first = index(str(archive), str(tmp_path / "first"))
    second = index(f"manifest:{tmp_path}/first", str(tmp_path / "second"))
    assert (second.source, second.root, second.digest) == (f"manifest:{tmp_path}/first", str(archive), first.digest)
    assert read_source(str(tmp_path / "second")) == read_source(str(archive))


def test_a_manifest_of_an_earlier_version_is_read_where_that_is_safe(archive: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest"
    index(str(archive), str(manifest))
    path = manifest / "manifest.json"

    def as_before() -> None:
        record = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in record.items() if k not in ("root", "left_out", "seal")}))

    as_before()
    assert read_source(str(manifest)) == read_source(str(archive))
    assert index(str(archive), str(manifest)).root == str(archive)
    rewritten_uris = [f"{archive}/a.png", f"{tmp_path}/elsewhere/secret.png"]
    index(str(archive), str(tmp_path / "other"))
    shutil.copytree(tmp_path / "other", manifest, dirs_exist_ok=True)
    rewritten(manifest, rewritten_uris)
    as_before()
    with pytest.raises(UsageError, match="lie below the folder"):
        read_source(str(manifest))


def test_a_named_manifest_must_be_there(archive: Path) -> None:
    with pytest.raises(UsageError, match="A manifest is a folder"):
        read_source(f"manifest:{archive}")


@pytest.mark.s3
def test_the_same_in_s3(s3: Any, archive: Path, tmp_path: Path) -> None:
    foreign = index(str(tmp_path / "elsewhere"), s3.uri("named/foreign"))
    for name in ("manifest.json", "part-00000.parquet"):
        s3.put(f"named/archive/{name}", storage.read_bytes(f"{foreign.uri}/{name}"))
    s3.put("named/archive/z.png", b"z")
    assert names(s3.uri("named/archive")) == ["manifest.json", "part-00000.parquet", "z.png"]
    assert names(foreign.uri) == ["secret.png"]
    assert names(f"manifest:{s3.uri('named/archive')}") == ["secret.png"]
    out = index(s3.uri("named/archive"), s3.uri("named/out"))
    local = tmp_path / "copy"
    local.mkdir()
    for name in ("manifest.json", "part-00000.parquet"):
        (local / name).write_bytes(storage.read_bytes(f"{out.uri}/{name}"))
    rewritten(local, [f"{archive}/a.png"])
    for name in ("manifest.json", "part-00000.parquet"):
        s3.put(f"named/out/{name}", (local / name).read_bytes())
    with pytest.raises(RetroscanError, match="lie below the folder"):
        read_source(out.uri)


def test_what_a_killed_index_left_beside_a_manifest_is_no_other_object(archive: Path, tmp_path: Path) -> None:
    index(str(archive), str(tmp_path / "manifest"))
    (tmp_path / "manifest" / f".0123{TEMPORARY}").write_bytes(b"half")
    # Of a larger archive: the record does not list it.
    (tmp_path / "manifest" / "part-00001.parquet").write_bytes(b"")
    assert names(str(tmp_path / "manifest")) == ["a.png", "b.png"]


def test_an_unreadable_folder_beside_a_manifests_files_is_no_reason_to_stop(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(str(tmp_path / "elsewhere"), str(tmp_path / "manifest"))
    for name in ("manifest.json", "part-00000.parquet"):
        shutil.copy(tmp_path / "manifest" / name, archive / name)
    (archive / "0-shut").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("0-shut"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    # To root no folder is shut.
    monkeypatch.setattr(os, "scandir", refuse)
    assert names(str(archive)) == ["a.png", "b.png", "manifest.json", "part-00000.parquet"]
