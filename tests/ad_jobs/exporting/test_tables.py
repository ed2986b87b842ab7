"""Rows as CSV and XLSX: all that were selected, as data and never as a formula, the same bytes every time."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import exportkit as kit
import openpyxl
import pytest
import scankit
from dicomkit import encode
from s3server import S3Server
from typer.testing import CliRunner

from ad_jobs.cli.app import app
from ad_jobs.errors import UsageError
from ad_jobs.export import export
from ad_jobs.exporting.selection import ROWS
from ad_jobs.results import xlsx_table
from cluster import storage

NASTY = ["=cmd|'x'!A0.png", '"quoted", and more.png', "two\nlines.png", "-1.png", "ünder.png"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five pictures of nasty names, two of which are flagged, two studies, and one object that failed."""
    objects = {name: scankit.png(number) for number, name in enumerate(NASTY)}
    objects |= {"z1.dcm": encode(kit.slice_of(1)), "z2.dcm": encode(kit.slice_of(2, study=f"{kit.ROOT}.5"))}
    objects["z3.dcm"] = b"nothing"
    folder = tmp_path_factory.mktemp("tables")
    return kit.run_over(folder, objects, flagged={NASTY[0], NASTY[1], "z1.dcm"})


def rows_of(path: Path) -> list[dict[str, str]]:
    text = path.read_bytes().decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_the_flagged_rows_stand_in_the_file_by_score(run: str, tmp_path: Path) -> None:
    out = tmp_path / "flagged.csv"
    told = export(run=run, out=str(out), format="csv")
    assert (told["selected"], told["written"], told["refused"], told["files"]) == (3, 3, {}, 1)
    rows = rows_of(out)
    assert list(rows[0]) == ["rank", *ROWS]
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert [float(row["score"]) for row in rows] == sorted((float(row["score"]) for row in rows), reverse=True)
    assert {row["flagged"] for row in rows} == {"true"}
    assert [row["score"] for row in rows][-1] == "0.86"


def test_fields_are_quoted_as_rfc_4180_has_it(run: str, tmp_path: Path) -> None:
    out = tmp_path / "all.csv"
    assert export(run=run, out=str(out), format="csv", all=True)["written"] == 8
    body = out.read_bytes()
    assert body.endswith(b"\r\n")
    assert body.startswith(b"rank,uri,frame,")
    names = {row["uri"].rpartition("/")[2] for row in rows_of(out)}
    assert {*NASTY} <= names
    (failed,) = [row for row in rows_of(out) if row["status"] == "failed"]
    assert (failed["score"], failed["error_code"], failed["flagged"]) == ("", "unknown_format", "")


def test_a_text_that_begins_as_a_formula_is_text() -> None:
    from ad_jobs.results.csv_table import harmless, text

    for begin in "=+-@\t\r":
        assert harmless(f"{begin}1") == f"'{begin}1"
    # A number is one.
    assert (text(-0.5), text("-0.5"), text(True), text(None)) == ("-0.5", "'-0.5", "true", None)


def test_what_a_decision_flagged_has_its_rank_and_its_threshold(run: str, tmp_path: Path) -> None:
    decision = kit.decided(run, {(3, 0), (5, 0)})
    out = tmp_path / "decided.csv"
    told = export(run=run, out=str(out), format="csv", decision=decision)
    assert (told["decision_id"], told["written"]) == (decision, 2)
    rows = rows_of(out)
    assert [(row["object_id"], row["rank"], row["p"], row["threshold"]) for row in rows] == [
        ("3", "4", "0.25", "0.75"),
        ("5", "6", "0.25", "0.75"),
    ]
    everything = export(run=run, out=str(tmp_path / "all.csv"), format="csv", decision=decision, all=True)
    assert everything["written"] == 8
    top = export(run=run, out=str(tmp_path / "top.csv"), format="csv", decision=decision, top=4)
    assert top["written"] == 4


def test_a_decision_of_studies_is_a_table_of_studies(run: str, tmp_path: Path) -> None:
    decision = kit.decided(run, {(5, 0)}, level="study")
    out = tmp_path / "studies.csv"
    assert export(run=run, out=str(out), format="csv", decision=decision)["written"] == 1
    (row,) = rows_of(out)
    assert (row["group"], row["object_id"], row["frames"]) == (f"{kit.ROOT}.5", "5", "1")


def test_the_highest_and_all(run: str, tmp_path: Path) -> None:
    out = tmp_path / "top.csv"
    export(run=run, out=str(out), format="csv", top=4)
    assert [row["object_id"] for row in rows_of(out)] == ["0", "1", "2", "3"]


def test_the_same_again_and_nothing_else_is_replaced(run: str, tmp_path: Path) -> None:
    for name in ("a.csv", "a.xlsx"):
        out = tmp_path / name
        export(run=run, out=str(out), format=name[2:])
        before = out.stat().st_mtime_ns
        export(run=run, out=str(out), format=name[2:])
        other = tmp_path / f"b.{name[2:]}"
        export(run=run, out=str(other), format=name[2:])
        assert (out.stat().st_mtime_ns, out.read_bytes()) == (before, other.read_bytes())
        with pytest.raises(UsageError, match="Nothing that is there is replaced"):
            export(run=run, out=str(out), format=name[2:], all=True)
        assert out.read_bytes() == other.read_bytes()


def test_a_workbook_has_typed_cells_a_frozen_header_and_no_formula(run: str, tmp_path: Path) -> None:
    out = tmp_path / "rows.xlsx"
    assert export(run=run, out=str(out), format="xlsx", all=True)["written"] == 8
    sheet = openpyxl.load_workbook(out).active
    assert sheet.freeze_panes == "A2"
    head, *rows = sheet.iter_rows()
    names = [cell.value for cell in head]
    assert names == ["rank", *ROWS]
    assert {cell.data_type for row in rows for cell in row} <= {"s", "n", "b"}
    by_name = [dict(zip(names, (cell.value for cell in row), strict=True)) for row in rows]
    assert by_name[0]["score"] == 0.9
    assert by_name[0]["flagged"] is True
    assert any(row["uri"].endswith(NASTY[0]) for row in by_name)


def test_text_cells_stay_text_whatever_they_begin_with(tmp_path: Path) -> None:
    import pyarrow as pa

    from ad_jobs.archive.sql import Stream

    table = pa.table({"text": ["=1+1", "+1", "a\x01b", "_x0001_\r", None]})
    xlsx_table.write_xlsx(Stream.of(table), tmp_path / "t.xlsx")
    cells = [row[0] for row in openpyxl.load_workbook(tmp_path / "t.xlsx").active.iter_rows(min_row=2)]
    # As Excel itself escapes what XML cannot hold, so that nothing is lost or mistaken.
    wanted = ["=1+1", "+1", "a_x0001_b", "_x005F_x0001__x000D_"]
    assert [(cell.data_type, cell.value) for cell in cells][:4] == [("s", value) for value in wanted]


def test_more_rows_than_a_sheet_holds_are_refused_with_a_remedy(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xlsx_table, "MAX_ROWS", 3)
    with pytest.raises(UsageError, match=r"2 rows below its header.*--format csv"):
        export(run=run, out=str(tmp_path / "a.xlsx"), format="xlsx")
    assert not (tmp_path / "a.xlsx").exists()
    monkeypatch.setattr(xlsx_table, "MAX_ROWS", 4)
    assert export(run=run, out=str(tmp_path / "a.xlsx"), format="xlsx")["written"] == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "csv", "out": "INSIDE/scores/x.csv"}, "beside it.*own folder"),
        ({"format": "png", "out": "INSIDE"}, "beside it.*own folder"),
        ({"format": "csv", "out": "rows"}, r"end with \.csv"),
        ({"format": "png", "top": 3, "all": True}, "--top 3 --all"),
        ({"format": "dicom-ko", "all": True}, "reviewers accepted"),
        ({"format": "jpeg"}, "--format"),
        ({"format": "csv", "out": "a.csv", "manifest": "m"}, "hashed identifiers"),
        ({"format": "csv", "out": "a.csv", "decision": "0" * 12}, "decision is one that the run has"),
    ],
)
def test_what_cannot_be_is_refused(run: str, options: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        export(**{"run": run, "out": str(tmp_path / "a"), **{k: _within(run, v) for k, v in options.items()}})


def _within(run: str, value: object) -> object:
    return value.replace("INSIDE", run) if isinstance(value, str) else value


def test_a_missing_extra_says_what_to_install(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"highdicom.*retroscan\[export\]"):
        export(run=run, out=str(tmp_path / "a"), format="dicom-sc")
    with pytest.raises(UsageError, match="openpyxl"):
        export(run=run, out=str(tmp_path / "a.xlsx"), format="xlsx")


def test_the_command_line_prints_what_was_written(run: str, tmp_path: Path) -> None:
    words = ["export", run, "--format", "csv", "--out", str(tmp_path / "a.csv")]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["written"] == 3
    assert "3 of 3 rows of run" in CliRunner().invoke(app, words).stdout


@pytest.mark.s3
def test_a_table_is_written_to_s3(run: str, s3: S3Server, tmp_path: Path) -> None:
    local, out = tmp_path / "a.csv", f"s3://{s3.bucket}/exports/a.csv"
    export(run=run, out=str(local), format="csv")
    for _ in range(2):
        export(run=run, out=out, format="csv")
        assert storage.read_bytes(out) == local.read_bytes()
    with pytest.raises(UsageError, match="Nothing that is there is replaced"):
        export(run=run, out=out, format="csv", top=1)
