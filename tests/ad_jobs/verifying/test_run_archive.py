"""What a run was made of: its manifest, where it lies now, and its names under a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_run
import pytest
from scankit import png

from ad_jobs.archive.fetching import Prepared
from ad_jobs.archive.identifiers import Identifiers
from ad_jobs.errors import UsageError
from ad_jobs.index import index
from ad_jobs.results.run import RunRecord, read_record
from ad_jobs.scanning.intent import manifest_beside
from ad_jobs.schema import HEADER
from ad_jobs.verifying.run_archive import RunArchive

HASHING = Identifiers("hashed", b"secret")


class Made:
    """A run of two objects, its archive, its key, and a manifest beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "archive").mkdir()
        for name in ("a.png", "b.png"):
            (folder / "archive" / name).write_bytes(png(1))
        self.run = fake_run.make(folder, normal=2, anomalous=0).uri
        self.manifest = index(str(folder / "archive"), manifest_beside(self.run))
        self.key = folder / "key"
        self.key.write_bytes(HASHING.key)

    def record(self, mode: str, **manifest: Any) -> RunRecord:
        written = read_record(self.run)
        known = {"uri": self.manifest.uri, "digest": self.manifest.digest, "objects": 2} | manifest
        changes = {
            "config": written.config | {"identifiers": mode},
            "manifest": written.manifest.model_copy(update=known),
        }
        return written.model_copy(update=changes)

    def hashed(self, **manifest: Any) -> RunRecord:
        return self.record("hashed", **({"uri": HASHING.uri(self.manifest.uri)} | manifest))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def test_a_hashed_run_finds_its_manifest_beside_it_or_where_it_is_sent(made: Made) -> None:
    archive = RunArchive(made.run, made.hashed())
    assert archive.selection() is None, "all of the manifest's"
    assert [(source.uri, source.within) for source in archive.sources([1, 7])] == [
        (f"{made.folder}/archive/b.png", f"{made.folder}/archive")
    ]
    Path(made.manifest.uri).rename(made.folder / "moved")
    with pytest.raises(UsageError, match="with --manifest"):
        RunArchive(made.run, made.hashed())
    assert RunArchive(made.run, made.hashed(), manifest=f"{made.folder}/moved").selection() is None


def test_another_manifest_is_refused(made: Made) -> None:
    (made.folder / "archive" / "c.png").write_bytes(png(2))
    index(str(made.folder / "archive"), str(made.folder / "later"))
    with pytest.raises(UsageError, match="the manifest that it was made from"):
        RunArchive(made.run, made.hashed(), manifest=str(made.folder / "later"))


def test_a_condition_that_is_hidden_selected_what_stands_in_the_table(made: Made) -> None:
    hidden = made.hashed(where=HASHING.uri("uri LIKE '%a%'"))
    found = RunArchive(made.run, hidden).selection()
    assert found is not None
    assert found.ids.tolist() == [0, 1]
    plain = made.record("plain", where="uri LIKE '%a.png'")
    found = RunArchive(made.run, plain).selection()
    assert found is not None
    assert found.ids.tolist() == [0]


def test_names_are_checked_under_the_key(made: Made) -> None:
    named = RunArchive(made.run, made.hashed(), key=made.key)
    [source] = named.sources([0])
    header: dict[str, object] = {"study_uid": "1.2.3", "series_uid": None}
    prepared = Prepared(source, (), None, None, None, header, [], 0.0, None)
    row = {
        "status": "scored",
        "uri": HASHING.uri(source.uri),
        "study_uid": HASHING.uid("1.2.3"),
        "series_uid": None,
        "sop_uid": float("nan"),
    }
    assert named.wrong_names(row, prepared) == []
    assert named.wrong_names(row | {"uri": source.uri}, prepared) == ["uri is not the object's under this key"]
    assert len(named.wrong_names(row | {"study_uid": None, "sop_uid": "1"}, prepared)) == 2
    # Earlier versions wrote no header of what failed; what is written must be the object's.
    failed = row | dict.fromkeys(HEADER.names) | {"status": "failed"}
    assert named.wrong_names(failed, prepared) == []
    assert len(named.wrong_names(failed | {"modality": "CT"}, prepared)) == 1
    # Without the key nobody can say.
    assert RunArchive(made.run, made.hashed()).wrong_names({}, prepared) == []
    of_none = RunArchive(made.run, made.record("none"))
    assert (
        of_none.wrong_names(
            {"status": "scored", "uri": source.uri, **dict.fromkeys(("study_uid", "series_uid", "sop_uid"))}, prepared
        )
        == []
    )


def test_a_key_is_for_hashes(made: Made) -> None:
    with pytest.raises(UsageError, match="for a run with hashed identifiers"):
        RunArchive(made.run, made.record("plain"), key=made.key)
