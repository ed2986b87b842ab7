"""`scan --since`: which objects are new, how they are accounted for, and which parents are refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scankit as kit
from runkit import scored, unscored
from sincekit import Rows, run_of, write_objects

from ad_jobs.archive.manifest import RowReader
from ad_jobs.cli import show
from ad_jobs.errors import JobError, RetroscanError, UsageError
from ad_jobs.evaluate import evaluate
from ad_jobs.index import index
from ad_jobs.report import report
from ad_jobs.results.read import read_scores
from ad_jobs.results.run import RunRecord, read_record
from ad_jobs.results.seal import sealed
from ad_jobs.scanning.intent import Intent, resolve
from ad_jobs.scoring.calibration import calibrate_on
from ad_jobs.scoring.held_out import HeldOut
from ad_jobs.scoring.model_store import open_fitted, write_calibration
from ad_jobs.specs import ScanSpec
from ad_jobs.verify import verify

OBJECTS = {f"{letter}.png": letter.encode() for letter in "abcdef"}


class Home:
    """An archive, a model, and runs of them in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = folder / "archive"
        self.model = kit.make_model(folder / "model")
        write_objects(self.archive, OBJECTS)
        self.first = self.run("run-1", failed=["b.png", "c.png"])

    def spec(self, name: str, **options: Any) -> ScanSpec:
        out = str(self.folder / name)
        return ScanSpec(**{"source": str(self.archive), "model": self.model, "out": out} | options)

    def run(self, name: str, failed: tuple[str, ...] | list[str] = (), **options: Any) -> RunRecord:
        return run_of(self.spec(name, **options), failed=failed)

    def since(self, parent: str, name: str = "next", **options: Any) -> Intent:
        return resolve(self.spec(name, since=str(self.folder / parent), **options))

    def write(self, name: str, content: bytes) -> None:
        """The file with this content, and a later time than any before."""
        (self.archive / name).write_bytes(content)
        latest = max(path.stat().st_mtime_ns for path in self.archive.iterdir())
        os.utime(self.archive / name, ns=(latest + 10**9, latest + 10**9))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def names(intent: Intent) -> str:
    """The first letters of what is to be scanned."""
    if not intent.objects:
        return ""
    uris = RowReader(intent.manifest).rows(intent.ids(0), ["uri"])["uri"].to_pylist()
    return "".join(Path(uri).stem for uri in uris)


def test_what_is_new_changed_or_failed_is_selected(home: Home) -> None:
    home.write("d.png", b"D")
    home.write("e.png", b"longer")
    home.write("g.png", b"g")
    (home.archive / "a.png").unlink()
    found = home.since("run-1")
    assert names(found) == "deg", "d has the size it had, and another etag"
    assert (found.objects, found.already, found.manifest.objects) == (3, 3, 6)
    assert names(home.since("run-1", "again", retry="failed")) == "bcdeg"
    assert names(home.since("run-1", "some", retry="failed", where="uri LIKE '%c.png' OR uri LIKE '%f.png'")) == "c"


def test_the_newest_run_that_has_an_object_says_what_it_was(home: Home) -> None:
    times = {path.name: path.stat().st_mtime_ns for path in home.archive.iterdir()}
    home.write("a.png", b"A")
    home.run("run-2", since=str(home.folder / "run-1"))
    assert read_record(str(home.folder / "run-2")).counts.objects == 1
    assert names(home.since("run-2")) == "", "what the parent's parent has is had"
    assert names(home.since("run-2", "failed", retry="failed")) == "bc"
    # As the first run saw it: the second has seen something else since.
    (home.archive / "a.png").write_bytes(b"a")
    os.utime(home.archive / "a.png", ns=(times["a.png"], times["a.png"]))
    assert names(home.since("run-2", "back")) == "a"


def test_what_failed_and_was_scored_since_is_not_tried_again(home: Home) -> None:
    second = home.run("run-2", failed=["c.png"], since=str(home.folder / "run-1"), retry="failed")
    assert (second.counts.objects, second.counts.failed, second.parent.retried) == (2, 1, 2)
    assert names(home.since("run-2", retry="failed")) == "c"


def test_objects_failed_under_the_models_that_are_asked_for(home: Home) -> None:
    other = kit.make_model(home.folder / "other", seed=1)
    home.run("both", failed=["a.png"], model=[home.model, other])
    assert names(home.since("both", model=other, retry="failed")) == "a"
    with pytest.raises(UsageError, match=r"under the same models.*without .*other"):
        home.since("run-1", model=[home.model, other])


@pytest.mark.parametrize("seed", range(3))
def test_a_chain_of_runs_selects_what_a_reading_of_all_of_them_does(home: Home, seed: int) -> None:
    rng = np.random.default_rng(seed)
    had: dict[str, tuple[int, int, bool]] = {
        name: (path.stat().st_mtime_ns, path.stat().st_size, name in ("b.png", "c.png"))
        for name in OBJECTS
        for path in [home.archive / name]
    }
    parent = "run-1"
    for number in range(2, 6):
        for name in rng.choice([f"{letter}.png" for letter in "abcdefghijkl"], 4, replace=False):
            home.write(str(name), bytes(int(rng.integers(1, 4))))
        for gone in rng.choice(sorted(path.name for path in home.archive.iterdir()), 1):
            (home.archive / str(gone)).unlink()
        retry = "failed" if number % 2 else None
        failed = [f"{letter}.png" for letter in rng.choice(list("abcdefghijkl"), 3, replace=False)]
        there = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(home.archive.iterdir())}
        new = [name for name, what in there.items() if had.get(name, (0, 0))[:2] != what]
        again = [name for name, what in there.items() if retry and had.get(name) == (*what, True)]
        record = home.run(f"run-{number}", failed=failed, since=str(home.folder / parent), retry=retry)
        out = str(home.folder / f"run-{number}")
        assert sorted(Path(uri).name for uri in read_scores(out)["uri"]) == sorted([*new, *again])
        assert record.manifest.already == len(there) - len(new) - len(again)
        assert record.parent.retried == len(again)
        assert verify(out, sample=0).differences == []
        had |= {name: (*there[name], name in failed) for name in [*new, *again]}
        parent = f"run-{number}"


def test_a_run_of_nothing_new_is_empty_and_can_be_a_parent(home: Home) -> None:
    record = home.run("run-2", since=str(home.folder / "run-1"))
    assert (record.counts.objects, record.parts, record.manifest.already) == (0, [], 6)
    out = str(home.folder / "run-2")
    assert len(read_scores(out)) == 0
    assert verify(out).differences == []
    assert "Nothing was new" in Path(report(out)).read_text()
    home.write("g.png", b"g")
    assert names(home.since("run-2")) == "g"


def test_a_condition_that_selects_nothing_is_still_refused(home: Home) -> None:
    with pytest.raises(UsageError, match="--where must select at least one"):
        home.since("run-1", where="object_id < 0")


def test_the_record_accounts_for_the_manifest_and_names_the_parent(home: Home) -> None:
    home.write("d.png", b"D")
    record = home.run("run-2", since=str(home.folder / "run-1"), retry="failed", where="uri NOT LIKE '%a.png'")
    manifest, parent = record.manifest, record.parent
    assert (manifest.listed, manifest.objects, manifest.already, manifest.not_selected) == (6, 3, 2, 1)
    assert (parent.uri, parent.run_id, parent.retry, parent.retried) == (
        str(home.folder / "run-1"),
        home.first.run_id,
        "failed",
        2,
    )
    assert "new since run" in Path(report(str(home.folder / "run-2"))).read_text()


def test_labels_of_what_the_parent_has_are_told_from_labels_of_what_never_was(home: Home) -> None:
    home.write("g.png", b"g")
    home.write("h.png", b"h")
    home.run("run-2", since=str(home.folder / "run-1"))
    lines = [f"{home.archive}/{letter}.png,{int(letter == 'g')}" for letter in "abcdefghx"]
    (home.folder / "labels.csv").write_text("\n".join(["image,anomalous", *lines]) + "\n")
    found = evaluate(str(home.folder / "run-2"), str(home.folder / "labels.csv"), bootstrap=0)
    assert (found["n_missing"], found["labels"]["not_selected"]) == (7, 6)


def test_the_id_of_a_run_follows_from_its_parent(home: Home) -> None:
    without = resolve(home.spec("next"))
    ids = {home.since("run-1").run_id, home.since("run-1", retry="failed").run_id, without.run_id}
    home.run("run-2", since=str(home.folder / "run-1"))
    assert len(ids | {home.since("run-2").run_id}) == 4


def rewritten(run: Path, **changes: Any) -> None:
    """run.json with other values, and the digest of these."""
    content = json.loads((run / "run.json").read_text())
    for name, value in changes.items():
        *folders, last = name.split("__")
        inner = content
        for folder in folders:
            inner = inner[folder]
        inner[last] = value
    (run / "run.json").write_text(json.dumps(sealed(content, None)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"manifest__already": 4}, "5 objects already; run.json has 4"),
        ({"parent__retried": 1}, "0 of the objects failed there; run.json has 1"),
        ({"parent__run_id": "0" * 12}, "A run's parent stays as it was"),
        ({"parent__retry": "failed"}, "config.since and config.retry are"),
        ({"parent__sha256": "0" * 64}, "A run's parent stays as it was"),
    ],
)
def test_verify_holds_the_record_against_the_parent(home: Home, changes: dict[str, Any], words: str) -> None:
    home.write("d.png", b"D")
    home.run("run-2", since=str(home.folder / "run-1"))
    run = home.folder / "run-2"
    assert verify(str(run), sample=0).differences == []
    rewritten(run, **changes)
    differences = verify(str(run), sample=0).differences
    assert any(words in text for text in differences), differences


def test_verify_says_that_a_parent_is_gone(home: Home) -> None:
    home.write("d.png", b"D")
    home.run("run-2", since=str(home.folder / "run-1"))
    assert verify(str(home.folder / "run-2"), sample=0).parent_checked
    shutil.rmtree(home.folder / "run-1")
    found = verify(str(home.folder / "run-2"), sample=0)
    assert (found.differences, found.parent_checked) == ([], False)


def unfinished(run: Path) -> None:
    (run / "run.json").unlink()


def changed(run: Path) -> None:
    (run / "run.json").write_text((run / "run.json").read_text().replace('"failed": 2', '"failed": 1'))


def without_a_part(run: Path) -> None:
    next((run / "scores").iterdir()).unlink()


def without_its_manifest(run: Path) -> None:
    shutil.rmtree(run / "manifest")


def with_another_manifest(run: Path) -> None:
    write_objects(run.parent / "other", {"z.png": b"z"})
    shutil.rmtree(run / "manifest")
    index(str(run.parent / "other"), str(run / "manifest"))


def gone(run: Path) -> None:
    shutil.rmtree(run)


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (unfinished, UsageError, "once it is finished"),
        (changed, UsageError, "as it was written"),
        (without_a_part, JobError, "cannot be read"),
        (without_its_manifest, UsageError, "is not there"),
        (with_another_manifest, UsageError, "another manifest by now"),
        (gone, UsageError, "retroscan scan --out"),
    ],
)
@pytest.mark.parametrize("parent", ["run-1", "run-2"])
def test_a_parent_that_cannot_be_relied_on_is_refused(
    home: Home, parent: str, damage: Any, kind: type[RetroscanError], words: str
) -> None:
    home.run("run-2", since=str(home.folder / "run-1"))
    damage(home.folder / "run-1")
    # Of a grandparent it may be another sentence.
    with pytest.raises(kind if parent == "run-1" else RetroscanError, match=words if parent == "run-1" else "run-1"):
        home.since(parent)
    assert not (home.folder / "next" / "run.json").exists()


def test_a_parent_of_another_source_is_refused(home: Home) -> None:
    other = write_objects(home.folder / "other", OBJECTS)
    with pytest.raises(UsageError, match=r"--since is a run of the same source.*other"):
        home.since("run-1", source=other)
    with pytest.raises(UsageError, match="another run than --out"):
        home.since("run-1", name="run-1")
    with pytest.raises(UsageError, match="Name that run with --since"):
        home.spec("next", retry="failed")


def test_a_parent_that_accepted_more_is_refused(home: Home) -> None:
    home.run("wide", accept=["side_px", "modality=CT"])
    assert names(home.since("wide", accept=["modality=CT", "side_px"])) == ""
    with pytest.raises(UsageError, match=r"accepted, or more.*wide, with side_px, modality=CT; this has side_px\."):
        home.since("wide", accept=["side_px"])


def outside(*letters: str) -> Rows:
    """Rows of which those of these objects are out of the domain, and those of b failed."""

    def rows(uri: str, model_id: str) -> list[dict[str, Any]]:
        if Path(uri).stem in letters:
            return [unscored(0, "out_of_domain", model_id)]
        return [unscored(0, "corrupt", model_id) if Path(uri).stem == "b" else scored(0, 0, model_id)]

    return rows


def test_what_was_out_of_a_domain_that_is_wider_now_is_selected_and_accounted_for(home: Home) -> None:
    run_of(home.spec("narrow"), rows=outside("c", "d"))
    assert names(home.since("narrow")) == ""
    home.write("g.png", b"g")
    wide = {"since": str(home.folder / "narrow"), "accept": ["modality=CT"]}
    assert names(home.since("narrow", "both", retry="failed", accept=["modality=CT"])) == "bcdg"
    # d is still outside of it.
    record = run_of(home.spec("wide", **wide), rows=outside("d"))
    parent = record.parent
    assert parent is not None
    assert (record.manifest.objects, record.manifest.already, parent.retried, parent.widened) == (3, 4, 0, 2)
    told = show.balance_text(record.model_dump(mode="json"), "wide")
    assert "manifest 7 = selected 3 + already in" in told
    assert "selected 3 = new 1 + out of a domain there that is wider now 2" in told
    assert "of which more is accepted now" in Path(report(str(home.folder / "wide"))).read_text()
    assert verify(str(home.folder / "wide"), sample=0).differences == []
    # The newest run says what d was, and by which domain.
    assert names(home.since("wide", "same", accept=["modality=CT"])) == ""
    assert names(home.since("wide", "wider", accept=["modality=CT", "side_px"])) == "d"
    rewritten(home.folder / "wide", parent__widened=1)
    (found,) = verify(str(home.folder / "wide"), sample=0).differences
    assert "2 of the objects were out of a domain there that is wider now; run.json has 1" in found


def test_manifests_of_one_source_may_lie_anywhere(home: Home) -> None:
    home.write("g.png", b"g")
    again = index(str(home.archive), str(home.folder / "manifest-2"))
    assert names(home.since("run-1", source=again.uri)) == "g"


def test_lists_may_be_called_anything(home: Home) -> None:
    for number, letters in ((1, "abx"), (2, "bcx")):
        lines = "".join(f"{home.archive}/{letter}.png\n" for letter in letters)
        (home.folder / f"{number}.csv").write_text("image\n" + lines)
    home.run("list-1", source=str(home.folder / "1.csv"))
    assert names(home.since("list-1", source=str(home.folder / "2.csv"))) == "c", "x is as absent as it was"
    with pytest.raises(UsageError, match="same source"):
        home.since("list-1")


def test_hashed_runs_are_continued_under_their_key(home: Home) -> None:
    (home.folder / "key").write_text("secret")
    (home.folder / "other-key").write_text("secret too")
    hashed = {"identifiers": "hashed", "identifiers_key": home.folder / "key"}
    home.run("hashed-1", failed=["a.png"], **hashed)
    home.write("g.png", b"g")
    assert names(home.since("hashed-1", retry="failed", **hashed)) == "ag"
    refuses_others(home, "hashed-1", hashed)


def refuses_others(home: Home, run: str, hashed: dict[str, Any]) -> None:
    for number, options in enumerate(({}, hashed | {"identifiers_key": home.folder / "other-key"})):
        with pytest.raises(UsageError, match="hashed ones under one key"):
            home.since(run, f"other-{number}", **options)


def test_a_hashed_run_whose_manifest_was_laid_beside_it_is_continued(home: Home) -> None:
    """One that was indexed elsewhere, as `decide --by` asks for: its place is in the record as a hash alone."""
    (home.folder / "key").write_text("secret")
    (home.folder / "other-key").write_text("secret too")
    hashed = {"identifiers": "hashed", "identifiers_key": home.folder / "key"}
    manifest = str(home.folder / "manifest")
    index(source=str(home.archive), out=manifest)
    home.run("hashed-1", source=manifest, failed=["a.png"], **hashed)
    shutil.copytree(manifest, home.folder / "hashed-1.manifest")
    home.write("g.png", b"g")
    assert names(home.since("hashed-1", retry="failed", **hashed)) == "ag"
    refuses_others(home, "hashed-1", hashed)


def test_a_model_calibrated_anew_is_the_same_model_and_that_is_told(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    model, detector = open_fitted(home.model)
    normal = (np.rint(65535 * kit.picture(number, kit.SIZE_PX))[None].astype(np.uint16) for number in range(20, 40))
    write_calibration(
        home.model, calibrate_on(detector, map(HeldOut, normal), model_id=model.model_id, max_fpr=0.2, source="another")
    )
    assert names(home.since("run-1")) == ""
    assert "was calibrated anew" in caplog.text
