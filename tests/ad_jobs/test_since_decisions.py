"""Decisions on a run that was made since another: every verb reads the run's own rows, and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import scankit as kit
from pagekit import Page
from reviewkit import client, images
from runkit import scored, unscored
from sincekit import run_of

from ad_jobs.compare import compare
from ad_jobs.decide import decide
from ad_jobs.deciding.text import decision_text
from ad_jobs.errors import UsageError
from ad_jobs.evaluate import evaluate
from ad_jobs.export import export
from ad_jobs.report import report
from ad_jobs.results.run import read_record
from ad_jobs.results.runs import open_runs
from ad_jobs.specs import ScanSpec

# Folders b and c are there first; c/1 fails, and is tried again when a is there, too.
SCORES = {"b/0": 0.1, "b/1": 0.7, "b/2": 0.2, "c/0": 0.3, "c/1": 0.6, "a/0": 0.4, "a/1": 0.5}
PARENT, CHILD = ("b/0", "b/1", "b/2", "c/0", "c/1"), ("a/0", "a/1", "c/1")


class Made:
    """A parent, a child of it, and the child's child, in which nothing was new."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.model = kit.make_model(home / "model")
        self._write(PARENT)
        self.parent = self._run("run-1", failed=["c/1"])
        self._write(SCORES)
        self.child = self._run("run-2", since=self.parent, retry="failed")
        self.empty = self._run("run-3", since=self.child)
        self.labels = home / "labels.csv"
        lines = [f"archive/{name}.png,{int(score > 0.45)}" for name, score in SCORES.items()]
        self.labels.write_text("\n".join(["image,anomalous", *lines]) + "\n")

    def _write(self, names: Any) -> None:
        for number, name in enumerate(names):
            path = self.home / "archive" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(kit.png(number))

    def _run(self, name: str, failed: tuple[str, ...] | list[str] = (), **options: Any) -> str:
        def rows(uri: str, model_id: str) -> list[dict[str, Any]]:
            of = self.name(uri)
            if of in failed:
                return [unscored(0, "fetch_failed", model_id)]
            return [scored(0, 0, model_id, score=SCORES[of], transfer_syntax="png")]

        out = str(self.home / name)
        run_of(ScanSpec(source=str(self.home / "archive"), model=self.model, out=out, **options), rows=rows)
        return out

    def name(self, uri: str) -> str:
        return uri.removeprefix(f"{self.home}/archive/").removesuffix(".png")

    def names(self, uris: Any) -> list[str]:
        return [self.name(uri) for uri in uris]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("since"))


def decided(run: str, **rule: Any) -> tuple[dict[str, Any], pd.DataFrame]:
    found = decide(run=run, **rule)
    return found, pd.read_parquet(f"{run}/decisions/{found['decision_id']}.parquet")


def test_what_is_new_and_what_was_tried_again_is_decided(made: Made, tmp_path: Path) -> None:
    parent, of_parent = decided(made.parent, top=2)
    path = tmp_path / "list.csv"
    child, of_child = decided(made.child, top=2, worklist=str(path))
    assert (len(of_parent), len(of_child)) == (4, 3), "what failed is decided where it was scored"
    assert made.names(pd.read_csv(path)["path"]) == ["c/1", "a/1"]
    assert parent["since"] is None
    assert "since run" not in decision_text(parent)
    first = read_record(made.parent).run_id
    assert child["since"] == {"run_id": first, "objects": 4}
    assert f"of what is new since run {first}, which has 4 objects of the archive" in decision_text(child)
    # Read as one table, every object stands in one decision at most.
    assert len(open_runs(made.child).scores(where="status = 'scored'")) == len(of_parent) + len(of_child)


def test_a_folder_of_both_is_decided_by_what_each_has_of_it(made: Made) -> None:
    child, table = decided(made.child, top=1, level="study")
    assert {made.name(group): frames for group, frames in zip(table["group"], table["frames"], strict=True)} == {
        "a": 2,
        "c": 1,
    }
    assert "folders with images in both are decided by the new ones alone" in decision_text(child)
    studies = pd.read_parquet(f"{made.child}/studies.parquet")
    assert sorted(made.names(studies["group"])) == ["a", "c"]


def test_labels_and_pages_are_of_the_runs_own_rows(made: Made) -> None:
    decision = decide(run=made.child, top=2)["decision_id"]
    for of in (None, decision):
        found = evaluate(made.child, str(made.labels), bootstrap=0, decision=of)
        assert (found["n_normal"], found["n_anomalous"], found["n_missing"]) == (1, 2, 4)
        assert found["labels"]["not_selected"] == 4
        page = Page(Path(report(made.child, decision=of)).read_text(encoding="utf-8"))
        assert "of 3 scored images flagged" in page.text
        assert "1 failed there and were scored again." in page.text
        with client(made.child, decision=of) as opened:
            assert made.names(row["uri"] for row in images(opened)) == ["c/1", "a/1", "a/0"]
            assert opened.get("/api/run").json()["since"] == read_record(made.parent).run_id


def test_what_is_handed_on_and_compared_is_too(made: Made, tmp_path: Path) -> None:
    few, many = (decide(run=made.child, top=top)["decision_id"] for top in (1, 2))
    export(run=made.child, format="csv", out=str(tmp_path / "few.csv"), decision=few)
    assert made.names(pd.read_csv(tmp_path / "few.csv")["uri"]) == ["c/1"]
    (model,) = compare(made.child, decision=(few, many))["models"]
    assert (model["flagged_both"], model["flagged_only_b"], model["flagged_neither"]) == (1, 1, 1)
    found = compare(made.parent, made.child)
    assert found["objects"] == {"both": 1, "only_a": 4, "only_b": 2, "content_changed": 0}
    assert "B was scanned since A" in found["relation"]


@pytest.mark.parametrize(
    "rule", [{"top": 2}, {"fdr": 0.5}, {"max_fpr": 0.2}, {"max_fpr": 0.2, "level": "study"}], ids=str
)
def test_where_nothing_is_new_nothing_is_decided(made: Made, tmp_path: Path, rule: dict[str, Any]) -> None:
    path = tmp_path / "list.csv"
    found, table = decided(made.empty, **rule, worklist=str(path))
    assert len(table) == len(pd.read_csv(path)) == 0
    text = decision_text(found)
    assert "nothing was scored, so nothing is flagged" in text
    assert "flag only" not in text
    assert "promised" not in text


def test_where_nothing_is_new_there_is_a_page_and_a_review_and_no_label(made: Made, tmp_path: Path) -> None:
    decision = decide(run=made.empty, top=2)["decision_id"]
    assert "Nothing was new." in Page(Path(report(made.empty, decision=decision)).read_text(encoding="utf-8")).text
    with client(made.empty, decision=decision) as opened:
        assert images(opened) == []
    assert export(run=made.empty, format="csv", out=str(tmp_path / "all.csv"), all=True)["written"] == 0
    with pytest.raises(UsageError, match="made --since may have them"):
        evaluate(made.empty, str(made.labels), bootstrap=0, decision=decision)
