"""A manifest lists every object once, in one order; the same archive gives the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ad_jobs.archive.listing import write_manifest
from ad_jobs.archive.manifest import read_manifest, select
from ad_jobs.archive.manifest_record import manifest_info
from ad_jobs.errors import JobError, UsageError
from ad_jobs.index import index
from ad_jobs.schema import MANIFEST
from cluster import storage

NAMES = ["a-b", "a/x", "a0", "b ü#?", "c/é/d", "￿", "𝄞"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_are_dense_and_in_uri_order(archive: Path, tmp_path: Path) -> None:
    info = index(str(archive), str(tmp_path / "out"))
    table = read_manifest(info.uri)
    assert table.schema.equals(MANIFEST)
    assert table["object_id"].to_pylist() == list(range(len(NAMES)))
    assert table["uri"].to_pylist() == sorted(f"{archive}/{name}" for name in NAMES)
    for row in table.to_pylist():
        found = storage.stat(row["uri"])
        assert (row["bytes"], row["etag"], row["modified"]) == found[1:]
    assert (info.objects, info.source, info.headers) == (len(NAMES), str(archive), False)
    assert manifest_info(str(tmp_path / "out")) == info


def test_a_name_that_is_no_text_gets_a_row(archive: Path, tmp_path: Path) -> None:
    Path(storage.uris.local_path(f"file://{archive}/%E9")).write_bytes(b"")
    info = index(str(archive), str(tmp_path / "out"))
    assert read_manifest(info.uri)["uri"].to_pylist()[-1] == f"file://{archive}/%E9"


@pytest.mark.parametrize("left", [b"", b'{"source": "/arch'])
def test_a_record_that_was_cut_off_is_written_again(archive: Path, tmp_path: Path, left: bytes) -> None:
    index(str(archive), str(tmp_path / "out"))
    whole = (tmp_path / "out" / "manifest.json").read_bytes()
    (tmp_path / "out" / "manifest.json").write_bytes(left)
    index(str(archive), str(tmp_path / "out"))
    digests = [json.loads(text)["digest"] for text in (whole, (tmp_path / "out" / "manifest.json").read_bytes())]
    assert digests[0] == digests[1]
    (tmp_path / "out" / "manifest.json").write_bytes(b'{"of": "somebody"}')
    with pytest.raises(UsageError, match="of another kind"):
        index(str(archive), str(tmp_path / "out"))


def test_the_same_archive_gives_the_same_parts(archive: Path, tmp_path: Path) -> None:
    first, second = (
        write_manifest(str(archive), str(tmp_path / name), part_rows=4, batch_rows=2) for name in ("one", "two")
    )
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert sorted(one) == ["manifest.json", "part-00000.parquet", "part-00001.parquet"]
    assert {n: d for n, d in one.items() if n != "manifest.json"} == {
        n: d for n, d in two.items() if n != "manifest.json"
    }
    assert first.digest == second.digest
    assert [part.rows for part in first.parts] == [4, 3]
    part = pq.ParquetFile(tmp_path / "one" / "part-00000.parquet")
    assert [part.metadata.row_group(n).num_rows for n in range(part.num_row_groups)] == [2, 2]
    assert read_manifest(first.uri)["object_id"].to_pylist() == list(range(7))

    # The digest is of the rows: neither of how they are cut, nor of when.
    assert write_manifest(str(archive), str(tmp_path / "three"), part_rows=2, batch_rows=2).digest == first.digest
    (archive / "a0").write_bytes(b"changed")
    assert index(str(archive), str(tmp_path / "four")).digest != first.digest


def test_indexing_again_changes_nothing(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = index(str(archive), str(out))
    before = content(out)
    assert index(str(archive) + "/", str(out)) == first
    assert content(out) == before


def test_a_manifest_is_never_replaced(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    index(str(archive), str(out))
    before = content(out)
    with pytest.raises(UsageError, match=r"not rewritten.*new folder"):
        index(str(archive / "a"), str(out))
    with pytest.raises(UsageError, match=r"without headers.*new folder"):
        index(str(archive), str(out), headers=True)
    (archive / "new").write_bytes(b"")
    with pytest.raises(UsageError, match=r"source has changed.*new folder"):
        index(str(archive), str(out))
    assert content(out) == before


def test_an_interrupted_index_is_made_good(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_manifest(str(archive), str(out), part_rows=2, batch_rows=2)
    (out / "manifest.json").unlink()
    (out / "part-00001.parquet").write_bytes(b"half")
    with pytest.raises(UsageError, match=r"manifest\.json"):
        manifest_info(str(out))
    info = write_manifest(str(archive), str(out), part_rows=4, batch_rows=2)
    assert sorted(content(out)) == ["manifest.json", "part-00000.parquet", "part-00001.parquet"]
    assert read_manifest(info.uri).num_rows == len(NAMES)


def test_out_must_not_lie_in_the_archive_nor_on_something_else(archive: Path, tmp_path: Path) -> None:
    for out in (archive, archive / "manifest"):
        with pytest.raises(UsageError, match="outside of SOURCE"):
            index(str(archive), str(out))
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="another kind"):
        index(str(archive), str(tmp_path / "web"))
    with pytest.raises(JobError, match="cannot be written"):
        index(str(archive), str(archive / ".." / "web" / "manifest.json" / "below"))
    with pytest.raises(UsageError, match="must exist"):
        index(str(tmp_path / "gone"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_list_beside_its_images_may_be_indexed_there(archive: Path) -> None:
    listed = archive / "list.csv"
    listed.write_text("image\na0\ngone\n")
    table = read_manifest(index(str(listed), str(archive / "manifest")).uri)
    assert table["bytes"].to_pylist() == [2, None]
    assert table["etag"].to_pylist()[1] is None


def test_a_manifest_can_be_indexed_again_with_the_same_rows(archive: Path, tmp_path: Path) -> None:
    first = index(str(archive), str(tmp_path / "one"))
    assert index(first.uri, str(tmp_path / "two")).digest == first.digest


def test_a_damaged_part_is_told(archive: Path, tmp_path: Path) -> None:
    info = index(str(archive), str(tmp_path / "out"))
    part = tmp_path / "out" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(JobError, match="sha256 differs"):
        read_manifest(info.uri)
    part.unlink()
    with pytest.raises(JobError, match="cannot be read"):
        read_manifest(info.uri)


# --- columns and --where


@pytest.fixture
def manifest(archive: Path, tmp_path: Path) -> str:
    return index(str(archive), str(tmp_path / "out")).uri


def test_columns(manifest: str) -> None:
    assert read_manifest(manifest, ["uri", "object_id"]).column_names == ["uri", "object_id"]
    with pytest.raises(UsageError, match=r"object_id, uri, bytes, etag, modified. Got: modality"):
        read_manifest(manifest, ["uri", "modality"])


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("bytes = 2", ["a0"]),
        ("uri LIKE '%archive/a%' -- a comment", ["a-b", "a/x", "a0"]),
        ("object_id % 3 = 0", ["a-b", "b ü#?", "𝄞"]),
        ("uri LIKE '%0' OR uri LIKE '%-b'", ["a-b", "a0"]),
        ("modified > '2020-01-01' AND bytes < 3", ["a0"]),
        ("contains(uri, '#') AND modality_is_not_needed IS NULL", None),
    ],
)
def test_where_selects_and_keeps_ids(manifest: str, archive: Path, where: str, names: list[str] | None) -> None:
    if names is None:
        with pytest.raises(UsageError, match="Columns: object_id, uri, bytes, etag, modified"):
            read_manifest(manifest, where=where)
        return
    everything = read_manifest(manifest).to_pylist()
    wanted = [row for row in everything if row["uri"] in {f"{archive}/{name}" for name in names}]
    assert read_manifest(manifest, where=where).to_pylist() == wanted
    assert read_manifest(manifest, ["object_id"], where)["object_id"].to_pylist() == [r["object_id"] for r in wanted]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("modality = 'MR'", "modality"),
        ("uri = ", "syntax"),
        ("", "SQL condition"),
        ("true) ORDER BY 1; DROP TABLE manifest; SELECT (1", "SQL condition"),
        ("uri IN (SELECT content FROM read_text('/etc/hostname'))", "disabled"),
        ("sum(bytes) > 1", "aggregate"),
        ("true) UNION ALL SELECT object_id FROM manifest WHERE (true", "SQL condition"),
        ("true UNION ALL SELECT object_id FROM manifest", "SQL condition"),
        ("true) EXCEPT SELECT 1 WHERE (true", "SQL condition"),
        ("true GROUP BY object_id", "SQL condition"),
        ("bytes > 1, true", "SQL condition"),
    ],
)
def test_where_refusals(manifest: str, where: str, words: str) -> None:
    with pytest.raises(UsageError, match=f"(?is){words}.*columns: object_id.*--headers"):
        read_manifest(manifest, where=where)


@pytest.mark.parametrize(
    ("where", "ids", "undecided"),
    [
        ("object_id > 4", [5, 6], 0),
        ("CASE WHEN object_id < 3 THEN NULL ELSE object_id > 4 END", [5, 6], 3),
        ("CASE WHEN object_id < 3 THEN NULL ELSE object_id > 4 END -- a comment", [5, 6], 3),
        ("object_id > 4 OR CASE WHEN object_id < 3 THEN NULL ELSE false END", [5, 6], 3),
        # As a number: true unless it is 0.
        ("CASE WHEN object_id = 1 THEN NULL ELSE object_id END", [2, 3, 4, 5, 6], 1),
    ],
)
def test_rows_for_which_a_condition_is_null_are_counted(
    manifest: str, where: str, ids: list[int], undecided: int
) -> None:
    found = select(manifest_info(manifest), where)
    assert found.ids.tolist() == ids
    assert found.undecided == undecided


def test_a_condition_that_nothing_meets_gives_no_rows_and_selects_nothing_to_scan(manifest: str) -> None:
    found = read_manifest(manifest, where="bytes < 0")
    assert (found.num_rows, found.schema) == (0, read_manifest(manifest).schema)
    assert read_manifest(manifest, ["uri", "object_id"], "bytes < 0").column_names == ["uri", "object_id"]
    with pytest.raises(UsageError, match=r"at least one object.*0 of 7.*Columns: object_id.*--headers"):
        select(manifest_info(manifest), "bytes < 0")


def test_a_condition_that_is_null_everywhere_says_so(manifest: str) -> None:
    with pytest.raises(UsageError, match=r"0 of 7; it is NULL for 7"):
        select(manifest_info(manifest), "uri = NULL")


def test_where_must_select_the_same_each_time(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(200):
        (folder / str(number)).write_bytes(b"")
    info = index(str(folder), str(tmp_path / "out"))
    with pytest.raises(UsageError, match="object_id % 100 = 0"):
        read_manifest(info.uri, where="random() < 0.5")


# --- S3


@pytest.mark.s3
class TestS3:
    def test_source_and_manifest_in_s3(self, s3: Any) -> None:
        for name in NAMES:
            s3.put(f"index/{name}", name.encode())
        out = s3.uri("index-out")
        info = index(s3.uri("index"), out)
        assert read_manifest(out)["uri"].to_pylist() == sorted(s3.uri(f"index/{name}") for name in NAMES)
        assert storage.list_names(out) == ["manifest.json", "part-00000.parquet"]
        assert json.loads(storage.read_bytes(f"{out}/manifest.json"))["digest"] == info.digest
        assert index(s3.uri("index"), out) == info
        assert index(s3.uri("index"), s3.uri("index-two")).parts == info.parts

    def test_the_bucket_of_out_is_asked_for_before_the_work(self, s3: Any, archive: Path) -> None:
        assert s3.bucket
        # A source that cannot be listed: it would be refused first, were it looked at first.
        with pytest.raises(UsageError, match="no-such-bucket"):
            index(str(archive / "gone"), "s3://no-such-bucket/out")
        with pytest.raises(UsageError, match="outside of SOURCE"):
            index(s3.uri(), s3.uri("out"))
