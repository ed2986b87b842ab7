"""The report of a decision: what it flags, what it misses, equal pictures once, and many cards beside the page."""

from __future__ import annotations

import hashlib
import re
from io import StringIO
from pathlib import Path
from typing import Any

import fake_run
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pagekit import Page, page_of
from rich.console import Console
from s3server import S3Server

from ad_jobs.cli.show import shown_text
from ad_jobs.cli.show_evaluation import evaluation_view
from ad_jobs.compare import compare
from ad_jobs.decide import decide
from ad_jobs.deciding.text import decision_text
from ad_jobs.errors import UsageError
from ad_jobs.evaluate import evaluate
from ad_jobs.export import export
from ad_jobs.page.place import pages
from ad_jobs.report import report
from ad_jobs.results.parts import RowGroup
from ad_jobs.results.run import describe_parts, held_out_copy, read_record, write_record
from ad_jobs.schema import SCORES
from ad_jobs.scoring.held_out import Scored, to_parquet
from ad_jobs.show import show
from cluster import storage


@pytest.fixture
def fake(tmp_path: Path) -> fake_run.FakeRun:
    made = fake_run.make(tmp_path, normal=20, anomalous=8)
    body = to_parquet(Scored(f"{i:064x}", 0, "", False, i / 200) for i in range(99))
    record = read_record(made.uri)
    path = Path(held_out_copy(made.uri, fake_run.MODEL))
    path.parent.mkdir()
    path.write_bytes(body)
    update = {"held_out_sha256": hashlib.sha256(body).hexdigest()}
    write_record(made.uri, record.model_copy(update={"models": [record.models[0].model_copy(update=update)]}))
    return made


def change(fake: fake_run.FakeRun, **columns: Any) -> None:
    """Other values in columns of the run's table."""
    path = f"{fake.uri}/scores/part-00000.parquet"
    table = pd.read_parquet(path).assign(**columns)
    pq.write_table(pa.Table.from_pandas(table, SCORES, preserve_index=False), path)
    record = read_record(fake.uri)
    write_record(fake.uri, record.model_copy(update={"parts": describe_parts(fake.uri)}))


def test_it_shows_what_the_decision_flags(fake: fake_run.FakeRun) -> None:
    decision = decide(run=fake.uri, top=3)
    page = page_of(fake, decision=decision["decision_id"])
    assert "3 of 28 scored images flagged" in page.text
    assert f"decision {decision['decision_id']} of run" in page.text
    assert "the decision has no single one" in page.text
    assert "above the threshold: flagged" not in page.text
    flagged = [attrs for tag, attrs in page.tags if tag == "figure" and "flagged" in (attrs.get("class") or "")]
    highest = sorted(fake.scores, key=lambda name: -fake.scores[name])[:3]
    assert [Path(attrs["title"] or "").name for attrs in flagged] == highest
    by_height = page_of(fake, decision=decide(run=fake.uri, max_fpr=0.05)["decision_id"])
    assert "the decision has no single one" not in by_height.text
    assert "above the threshold: flagged" in by_height.text
    with pytest.raises(UsageError, match="one that the run has"):
        report(fake.uri, decision="0" * 12)


def test_each_decision_has_a_page_of_its_own_and_the_run_keeps_its(fake: fake_run.FakeRun) -> None:
    first, second = (decide(run=fake.uri, top=top)["decision_id"] for top in (3, 5))
    folder = Path(fake.uri, "report")
    assert pages(fake.uri) == show(folder=fake.uri)["run"]["pages"] == []
    page_of(fake, top=28)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    page_of(fake, decision=first, top=28)
    page_of(fake, decision=second)
    pictures = folder / first / "pictures"
    assert len(list(pictures.iterdir())) == 2 * 28
    assert not (folder / second / "pictures").exists()
    # Another picture beside the first decision's page, and fewer in the second's: each is told of its own alone.
    page_of(fake, decision=first, top=25)
    assert len(list(pictures.iterdir())) == 2 * 25
    assert {path: path.read_bytes() for path in before} == before
    for decision, headline in ((first, "3 of 28 scored images"), (second, "5 of 28 scored images")):
        page = Page((folder / decision / "index.html").read_text(encoding="utf-8"))
        assert f"{headline} flagged" in page.text
        assert f"Scan report {fake_run.RUN_ID}, decision {decision}" in page.text
    expected = [f"{fake.uri}/report/{place}index.html" for place in (*sorted([f"{first}/", f"{second}/"]), "")]
    assert pages(fake.uri) == expected
    found = show(folder=fake.uri)
    assert found["run"]["pages"] == expected
    assert [line for line in shown_text(found).splitlines() if "  page " in line] == [
        f"  page         {one}" for one in expected
    ]


def test_what_is_made_of_a_run_replaces_no_page(fake: fake_run.FakeRun, tmp_path: Path) -> None:
    decision = decide(run=fake.uri, top=3)["decision_id"]
    page_of(fake, decision=decision)
    for out in (f"{fake.uri}/report/{decision}", f"{fake.uri}/report", fake.uri):
        with pytest.raises(UsageError, match="stands beside it"):
            compare(fake.uri, decision=(decision,), out=out)
        with pytest.raises(UsageError, match="stands beside it"):
            export(run=fake.uri, format="png", out=out)
    with pytest.raises(UsageError, match="stands beside it"):
        decide(run=fake.uri, top=3, worklist=f"{fake.uri}/report/{decision}/list.csv")
    for out in (f"{fake.uri}/compared/mine", str(tmp_path / "other")):
        assert compare(fake.uri, decision=(decision,), out=out)["page"] == f"{out}/index.html"


def test_pages_in_s3_stand_side_by_side(fake: fake_run.FakeRun, s3: S3Server) -> None:
    uri = s3.uri("report-decision/run")
    for path in Path(fake.uri).rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{uri}/{path.relative_to(fake.uri)}", path.read_bytes())
    decision = decide(run=uri, top=3)["decision_id"]
    own = storage.read_bytes(report(uri))
    assert report(uri, decision=decision, top=28) == f"{uri}/report/{decision}/index.html"
    assert len(storage.list_names(f"{uri}/report/{decision}/pictures")) == 2 * 28
    assert storage.read_bytes(report(uri)) == own
    assert pages(uri) == [f"{uri}/report/{decision}/index.html", f"{uri}/report/index.html"]


def test_of_a_decision_about_studies_studies_are_counted(fake: fake_run.FakeRun) -> None:
    change(fake, study_uid=[f"1.2.{i // 4}" for i in range(28)])
    decision = decide(run=fake.uri, top=3, level="study")
    text = page_of(fake, decision=decision["decision_id"]).text
    assert "3 of 7 studies flagged" in text
    assert "12 images in flagged studies of 28" in text
    assert "3 of 7 studies 42.9%, with 12 of 28 frames" in text


def test_of_pictures_folders_are_spoken_of_and_no_study(fake: fake_run.FakeRun, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    decision = decide(run=fake.uri, max_fpr=0.5, level="study", worklist=str(path))
    assert decision["units"] == "folders"
    evaluated = evaluate(fake.uri, str(fake.labels), bootstrap=0, level="study", decision=decision["decision_id"])
    terminal = Console(width=400, file=StringIO())
    terminal.print(evaluation_view(evaluated))
    page = page_of(fake, decision=decision["decision_id"])
    texts = [decision_text(decision), terminal.file.getvalue(), page.text, *pd.read_csv(path)["why"]]
    for text in texts:
        without = text.replace(decision_text(decision).splitlines()[0], "").replace("studies.parquet", "")
        assert not re.search(r"\b(stud(y|ies)|series|patients?|disease|burned-in|frames?)\b", without), text
    assert "1 of 1 folders flagged" in texts[0]
    assert "held-out normal groups" in texts[0]
    assert "flagged 1 of 1 labelled folders" in texts[1]
    assert "Most suspicious folders" in page.text
    assert "held-out normal groups are as suspicious" in texts[3]
    # With one object of DICOM among them they are studies.
    change(fake, modality=[None] * 27 + ["MR"])
    assert "Most suspicious studies" in page_of(fake).text
    assert decide(run=fake.uri, max_fpr=0.5, level="study")["units"] == "studies"


def test_a_run_is_read_once(fake: fake_run.FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[str]] = []
    batches = RowGroup.batches

    def counted(self: RowGroup, columns: list[str], rows: int) -> Any:
        read.append(columns)
        return batches(self, columns, rows)

    monkeypatch.setattr(RowGroup, "batches", counted)
    page_of(fake)
    assert len(read) == 1


def test_labels_and_what_was_missed_are_told(fake: fake_run.FakeRun) -> None:
    assert "by label" not in page_of(fake).text
    decision = decide(run=fake.uri, top=2)["decision_id"]
    found = evaluate(fake.uri, str(fake.labels), bootstrap=0, decision=decision)
    page = page_of(fake, decision=decision, top=4)
    assert page.text.count("anomalous by label") + page.text.count("normal by label") == 4 + 6
    assert "Missed labelled anomalous and not flagged" in page.text
    assert found["at_threshold"]["false_negative"] == 6
    # Labels that are others by now say nothing.
    fake.labels.write_text(fake.labels.read_text() + "\n")
    assert "anomalous by label" not in page_of(fake, decision=decision, top=4).text


def test_equal_pictures_are_one_card(fake: fake_run.FakeRun) -> None:
    best = sorted(fake.scores.values())[-1]
    table = pd.read_parquet(f"{fake.uri}/scores/part-00000.parquet")
    same = table["object_id"] < 13
    first = table["content_sha256"].iloc[0]
    change(
        fake, score=table["score"].where(~same, best + 1), content_sha256=table["content_sha256"].where(~same, first)
    )
    page = page_of(fake, top=15)
    assert "13 of them are this one picture." in page.text
    assert "#1 to 13" in page.text
    assert len([tag for tag, _ in page.tags if tag == "figure"]) - page.text.count("Larger is more") == 3


def test_many_cards_are_loaded_from_beside_the_page(fake: fake_run.FakeRun) -> None:
    folder = Path(fake.uri, "report", "pictures")
    page = page_of(fake, top=28)
    names = {name for name in page.values("img", "src") if name.startswith("pictures/")}
    assert len(names) == len(page.values("img", "src")) == 2 * 28
    assert {f"pictures/{path.name}" for path in folder.iterdir()} == names
    assert set(page.values("img", "loading")) == {"lazy"}
    assert "img-src data: file: 'self';" in page.values("meta", "content")[0]
    again = Page(Path(report(fake.uri)).read_text(encoding="utf-8"))
    assert all(name.startswith("data:") for name in again.values("img", "src"))
    assert not list(folder.iterdir()), "what no page shows is removed"
    with pytest.raises(UsageError, match="1000"):
        report(fake.uri, top=1001)


def test_the_most_suspicious_studies_are_listed_where_there_are_any(fake: fake_run.FakeRun) -> None:
    assert "Most suspicious folders" in page_of(fake).text, "pictures of one folder"
    table = pd.read_parquet(f"{fake.uri}/scores/part-00000.parquet")
    change(fake, study_uid=[f"1.{i}" for i in range(len(table))])
    assert "Most suspicious" not in page_of(fake).text, "a study of one frame is that frame"
    change(fake, study_uid=[f"1.2.{i // 4}" for i in range(len(table))], modality="MR")
    text = page_of(fake).text
    assert "Most suspicious studies" in text
    assert text.count("1.2.") == 7
    studies = pd.read_parquet(f"{fake.uri}/studies.parquet")
    assert len(studies) == 7
    assert studies["frames"].tolist() == [4] * 7
    assert Path(fake.uri, "series.parquet").exists()
