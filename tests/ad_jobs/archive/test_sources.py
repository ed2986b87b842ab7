"""The four forms of a source give the same objects in the same order; bad ones are refused with a remedy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ad_jobs.archive.sources import read_image_list, read_source, resolve
from ad_jobs.errors import UsageError
from ad_jobs.index import index

NAMES = ["a-b.png", "a/x.png", "a0.png", "b ü#?.png", "labels.csv"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def refused(source: str, *words: str) -> UsageError:
    """The refusal of a source; it has a rule, a value and a remedy, and says `words`."""
    with pytest.raises(UsageError) as caught:
        read_source(source)
    error = caught.value
    assert error.rule.endswith(".")
    assert error.remedy.endswith(".")
    for word in words:
        assert word in str(error)
    return error


def test_a_folder_a_manifest_and_lists_are_the_same_objects(archive: Path, tmp_path: Path) -> None:
    objects = read_source(str(archive))
    assert [o.uri for o in objects] == sorted(f"{archive}/{name}" for name in NAMES)
    assert all(o.bytes == len(Path(o.uri).read_bytes()) and o.etag and o.modified for o in objects)

    index(str(archive), str(tmp_path / "manifest"))
    assert read_source(str(tmp_path / "manifest")) == objects

    backwards = [f"archive/{name}" for name in reversed(NAMES)]
    listed = tmp_path / "list.CSV"
    listed.write_text("image\n" + "\n".join(backwards) + "\n", encoding="utf-8")
    # Only what a list names may lie anywhere.
    anywhere = [o._replace(within=None) for o in objects]
    assert read_source(str(listed)) == anywhere

    pq.write_table(pa.table({"image": backwards, "anomalous": [1] * len(NAMES)}), tmp_path / "list.parquet")
    assert read_source(str(tmp_path / "list.parquet")) == anywhere


def test_a_list_keeps_groups_and_what_is_gone(archive: Path) -> None:
    listed = archive / "list.csv"
    rows = [
        "note,image,group,anomalous",
        '"left, upper",a0.png,p1,0',
        "",
        "x,gone.png,,1",
        f"x,{archive}/a-b.png,p2,1",
        "x,../archive/a/x.png,p1,",
    ]
    listed.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    objects = read_source(str(listed))
    assert [(o.uri.removeprefix(f"{archive}/"), o.group, o.bytes) for o in objects] == [
        ("a-b.png", "p2", 7),
        ("a/x.png", "p1", 7),
        ("a0.png", "p1", 6),
        ("gone.png", None, None),
    ]
    assert objects[-1].etag is None


def test_numbers_in_a_list_stay_text(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image,group\n001,07\n")
    assert read_image_list(str(tmp_path / "list.csv")) == [("001", "07")]
    pq.write_table(pa.table({"image": ["001"], "group": pa.array([7], pa.int64())}), tmp_path / "list.parquet")
    assert read_image_list(str(tmp_path / "list.parquet")) == [("001", "7")]


def test_a_folder_with_the_name_of_a_list_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "odd.csv").mkdir()
    (tmp_path / "odd.csv" / "a").write_bytes(b"a")
    assert [o.uri for o in read_source(str(tmp_path / "odd.csv"))] == [f"{tmp_path}/odd.csv/a"]


def test_another_kind_of_manifest_json_is_an_object(archive: Path) -> None:
    (archive / "manifest.json").write_text('{"name": "a web page"}')
    assert f"{archive}/manifest.json" in [o.uri for o in read_source(str(archive))]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("path,group\na.png,1\n", ["column image", "path, group"]),
        ("image;group\na.png;1\n", ["column image", "image;group"]),
        ("image,image\na,b\n", ["one column image"]),
        ("", ["column image", "(none)"]),
        ("image\n", ["at least one image"]),
        ("image,group\n,1\n", ["row 1", "empty"]),
        ("image\na.png\nb.png\n./a.png\n", ["once", "./a.png"]),
        ("image\na,b.png\n", ["line 2", "2 instead of 1"]),
        ("image\n\xff", ["UTF-8"]),
        ('image\n"a', ["comma-separated"]),
        ("image\nhttp://host/a.png\n", ["http://host/a.png"]),
        ("image\nnope/a.png\nnope/b.png\n", ["none of 2", "nope/a.png", "list's own folder"]),
    ],
)
def test_bad_csv_lists(archive: Path, content: str, words: list[str]) -> None:
    for name in ("a.png", "b.png"):
        (archive / name).write_bytes(b"x")
    listed = archive / "list.csv"
    listed.write_bytes(content.encode("latin-1"))
    refused(str(listed), str(listed), *words)


def test_bad_parquet_lists(tmp_path: Path) -> None:
    listed = tmp_path / "list.parquet"
    listed.write_bytes(b"no parquet")
    refused(str(listed), "Parquet list")
    pq.write_table(pa.table({"uri": ["a"]}), listed)
    refused(str(listed), "column image", "uri")
    pq.write_table(pa.table({"image": [["a"], ["b"]]}), listed)
    refused(str(listed), "text in its column image")


def test_bad_folders(archive: Path, tmp_path: Path) -> None:
    refused(str(tmp_path / "gone"), "must exist", f"{tmp_path}/gone", "spelling")
    refused(str(tmp_path / "gone.csv"), "must exist")
    refused(str(archive / "a0.png"), "single file", "retroscan score")
    (tmp_path / "empty").mkdir()
    refused(str(tmp_path / "empty"), "at least one object")


def test_an_unfinished_manifest_is_no_archive(archive: Path, tmp_path: Path) -> None:
    index(str(archive), str(tmp_path / "manifest"))
    (tmp_path / "manifest" / "manifest.json").unlink()
    refused(str(tmp_path / "manifest"), "finished", "index again")


def test_resolve() -> None:
    assert resolve("/lists/a.csv", "../pics/x y.png") == "/pics/x y.png"
    assert resolve("/lists/a.csv", "s3://b/../k/") == "s3://b/../k/"
    assert resolve("s3://b/lists/a.csv", "pics//x#.png") == "s3://b/lists/pics//x#.png"
    assert resolve("s3://b/a.csv", "x.png") == "s3://b/x.png"
    assert resolve("s3://b/lists/a.csv", "/pics/x.png") == "/pics/x.png"
    assert resolve("/lists/a.csv", "file:///pics/x%20y.png") == "/pics/x y.png"
    with pytest.raises(UsageError, match=re.escape("../x.png")):
        resolve("s3://b/lists/a.csv", "../x.png")


@pytest.mark.s3
class TestS3:
    def test_a_prefix_a_list_and_a_manifest_are_the_same_objects(self, s3: Any) -> None:
        for name in NAMES:
            s3.put(f"sources/pics/{name}", name.encode())
        objects = read_source(s3.uri("sources/pics"))
        assert [o.uri for o in objects] == sorted(s3.uri(f"sources/pics/{name}") for name in NAMES)
        listed = s3.put("sources/list.csv", ("image\n" + "\n".join(f"pics/{n}" for n in NAMES)).encode())
        same = read_source(listed)
        alike = [o._replace(modified=None, within=None) for o in objects]
        assert [o._replace(modified=None) for o in same] == alike
        index(s3.uri("sources/pics"), s3.uri("sources/manifest"))
        assert read_source(s3.uri("sources/manifest")) == objects

    def test_refusals(self, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        refused("s3://no-such-bucket/pics", "bucket", "no-such-bucket", "AWS_ENDPOINT_URL")
        refused(s3.uri("no-such-prefix"), "no-such-prefix")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with monkeypatch.context() as patch:
            patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
            for source in (s3.uri("sources"), s3.uri("sources/list.csv")):
                refused(source, "credentials", "AWS_SECRET_ACCESS_KEY")
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
            refused(s3.uri("sources"), "must answer", "127.0.0.1:9", "AWS_ENDPOINT_URL")
