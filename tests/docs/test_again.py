"""docs/again.md: its code is run, beside two runs of an archive in which one object changed and one is new."""

from __future__ import annotations

from pathlib import Path

import pytest
import scankit as kit
import walkkit as walk
from sincekit import run_of, write_objects

from ad_jobs.cli import show
from ad_jobs.specs import ScanSpec

PAGE = Path(__file__).parents[2] / "docs" / "again.md"


def test_the_page_shows_what_its_code_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kit.make_model(tmp_path / "model")
    write_objects(tmp_path / "archive", {f"{letter}.png": letter.encode() for letter in "abcdef"})
    run_of(ScanSpec(source="archive", model="model", out="run-1"))
    write_objects(tmp_path / "archive", {"a.png": b"longer", "g.png": b"g"})
    run_of(ScanSpec(source="archive", model="model", out="run-2", since="run-1"))
    walk.run(PAGE, {})
    assert sum(step.shown is not None for step in walk.steps(PAGE)) == 2


def test_the_page_shows_what_a_scan_says() -> None:
    counts = {"objects": 36, "scored": 34, "failed": 2, "skipped": 0, "rows": 36, "flagged": 1, "heatmaps": 1}
    record = {
        "run_id": "r",
        "counts": counts | {"by_code": {}},
        "manifest": {"where": None, "objects": 36, "listed": 347, "undecided": 0, "already": 311},
        "parent": {"run_id": "1f0c5b7a9e21", "retried": 11, "widened": 0},
    }
    told = "\n".join(show.balance_text(record, "./run").splitlines()[:3])
    assert f"```\n{told}\n```" in PAGE.read_text()
