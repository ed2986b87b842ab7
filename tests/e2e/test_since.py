"""An archive that changes, scanned again since the last run: what is scored, what is read as one, what is compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import scankit as kit
from s3server import S3Server

from ad_jobs.compare import compare
from ad_jobs.errors import TooManyFailed
from ad_jobs.results.read import read_scores
from ad_jobs.results.runs import open_runs
from ad_jobs.scan import scan
from ad_jobs.verify import verify
from cluster import storage

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.usefixtures("one_ray")]

GOOD, BAD = kit.good_objects(8), {name: data for name, (data, _) in kit.bad_objects().items()}


class Archive:
    """Objects and runs of them, in a folder or in a bucket."""

    def __init__(self, place: str, folder: Path, s3: S3Server) -> None:
        self._local = place == "local"
        self._folder, self._s3 = folder, s3
        model = folder / "model"
        kit.make_model(model)
        self._prefix = f"since/{folder.name}"
        self.model = str(model) if self._local else s3.put_folder(model, f"{self._prefix}/model")
        self.source = self.place("archive")

    def place(self, name: str) -> str:
        return str(self._folder / name) if self._local else f"s3://{self._s3.bucket}/{self._prefix}/{name}"

    def put(self, objects: dict[str, bytes]) -> None:
        if self._local:
            kit.write_archive(self._folder / "archive", objects)
            return
        for name, data in objects.items():
            self._s3.client.put_object(Bucket=self._s3.bucket, Key=f"{self._prefix}/archive/{name}", Body=data)

    def remove(self, name: str) -> None:
        if self._local:
            (self._folder / "archive" / name).unlink()
        else:
            self._s3.client.delete_object(Bucket=self._s3.bucket, Key=f"{self._prefix}/archive/{name}")


@pytest.fixture(params=["local", "s3"])
def archive(request: pytest.FixtureRequest, tmp_path: Path, s3: S3Server) -> Archive:
    return Archive(request.param, tmp_path, s3)


def scanned(run: str) -> set[str]:
    """The names of the objects in a run."""
    return set(kit.named(read_scores(run)).index.get_level_values("name"))


def test_an_archive_that_changes_is_scored_where_it_does(archive: Archive) -> None:
    first, second, third, fourth = (archive.place(f"run-{number}") for number in (1, 2, 3, 4))
    archive.put(GOOD | BAD)
    scan(archive.source, [archive.model], first)

    added = {f"good/new-{number}.png": kit.png(100 + number) for number in range(2)}
    changed = {"good/0001.png": kit.png(200), "good/0002.png": kit.png(1)[:300], "bad/text.png": kit.png(201)}
    archive.put(added | changed)
    archive.remove("good/0004.png")
    record = scan(archive.source, [archive.model], second, since=first)
    assert scanned(second) == {*added, *changed}
    assert (record.counts.scored, record.counts.failed, record.manifest.already) == (4, 1, len(GOOD | BAD) - 4)
    assert verify(second, sample=100).differences == []

    # The same command, and then with nothing that is new.
    assert scan(archive.source, [archive.model], second, since=first) == record
    nothing = scan(archive.source, [archive.model], third, since=second)
    assert (nothing.counts.objects, nothing.manifest.already) == (0, nothing.manifest.listed)
    assert verify(third).differences == []

    # An end in the middle, and the same command again: the manifest, the parent and so the run are what they were.
    archive.put({"good/later.png": kit.png(300)})
    options = {"since": third, "retry": "failed", "chapter_objects": 2}
    with pytest.raises(TooManyFailed):
        scan(archive.source, [archive.model], fourth, max_failed=0.0, **options)
    resumed = scan(archive.source, [archive.model], fourth, **options)
    failed = {"bad/empty.png", "bad/huge.png", "bad/truncated.dcm", "bad/truncated.png", "good/0002.png"}
    assert scanned(fourth) == failed | {"good/later.png"}
    assert (resumed.parent.retried, resumed.counts.failed) == (len(failed), len(failed))
    found = verify(fourth, sample=100)
    assert (found.differences, found.parent_checked) == ([], True)

    # As one: every object that ever was, as it was seen last.
    as_one = open_runs(fourth)
    rows = kit.named(as_one.scores())
    assert not rows.index.duplicated().any()
    names = rows.index.get_level_values("name")
    assert set(names) == {*GOOD, *BAD, *added, "good/later.png"}
    newest = {name: run for run in (first, second, fourth) for name in scanned(run)}
    ids = {run.uri: run.record.run_id for run in as_one.runs}
    assert rows["run_id"].tolist() == [ids[newest[name]] for name in names]
    assert as_one.heatmap(rows[rows["heatmap"].notna()].iloc[0]).values.shape == (kit.SIZE_PX, kit.SIZE_PX)

    compared = compare(first, second)
    assert compared["relation"] == "B was scanned since A: it has only what is new, or was tried again."
    assert compared["objects"] == {
        "both": 3,
        "only_a": len(GOOD | BAD) - 3,
        "only_b": len(added),
        "content_changed": len(changed),
    }
    assert {(one["a"], one["b"]) for one in compared["statuses"]} == {
        ("scored", "truncated"),
        ("unknown_format", "scored"),
    }
    assert storage.read_bytes(compared["page"]).startswith(b"<!doctype html>")
    assert verify(second, sample=0).differences == [], "what is written below a run is no part of it"
