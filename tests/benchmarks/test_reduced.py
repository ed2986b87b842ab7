"""The benchmark of reduced decoding: who judges whom, what is counted, and what its rule makes of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("psutil")
from benchmarks import reduced, reduced_page, reduced_scan


def test_folds_have_everyone_once_and_split_no_group() -> None:
    groups = [str(number // 2) for number in range(40)]
    parts = reduced.folds(groups)
    assert sorted(position for part in parts for position in part) == list(range(40))
    assert len(parts) == reduced.FOLDS
    for part in parts:
        others = {groups[position] for other in parts if other is not part for position in other}
        assert not others & {groups[position] for position in part}


def scored(**changed: Any) -> dict[str, Any]:
    """Four that were reduced, one of them anomalous, and one that was not."""
    base = {
        "anomalous": [False, False, False, True, False],
        "factor": [2, 2, 4, 2, 1],
        "change": [0.1, -0.2, 0.0, 0.5, 0.0],
        "before": [True, False, False, True, True],
        "after": [False, True, False, False, True],
        "areas": [0.9, 0.7],
        "refused": [1],
    }
    return {name: np.array(value) for name, value in (base | changed).items()}


def test_only_what_was_reduced_is_counted() -> None:
    found = reduced._summary([scored(), scored(areas=[0.7, 0.5])])
    assert (found["normals"], found["off"], found["on"], found["normals_flagged"]) == (6, 2, 2, 2)
    assert (found["anomalous"], found["anomalous_changed"], found["refused"]) == (2, 2, 2)
    assert (found["largest"], found["median"]) == pytest.approx((0.5, 0.15))
    assert found["mean"] == pytest.approx(0.1)
    assert found["factors"] == {"1": 2, "2": 6, "4": 2}
    assert found["auroc"] == pytest.approx([0.8, 0.6])


def cell(name: str, of: str, normals: int, off: int, detector: str = "linear") -> dict[str, Any]:
    found = reduced._summary([scored()]) | {"normals": normals, "off": off, "on": 0}
    return {"set": name, "of": of, "detector": detector, "forms": {"JPEG": found}}


def test_pictures_that_two_sets_share_count_once() -> None:
    cells = [cell("elpv", "elpv", 500, 0), cell("elpv doubled", "elpv", 400, 1), cell("phantoms", "phantoms", 300, 2)]
    assert reduced_page.totals(cells, "linear") == (800, {"JPEG": (3, 1200)})


@pytest.mark.parametrize(
    ("normals", "off", "said"),
    [
        (1000, 2, "Met."),
        (1000, 3, "Not met: linear on JPEG: 0.30%."),
        (999, 0, "Not met: linear: 999 different normals."),
    ],
)
def test_the_rule_for_the_default(normals: int, off: int, said: str) -> None:
    assert reduced_page._rule([cell("phantoms", "phantoms", normals, off)])[-1] == said


def test_the_page_comes_from_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESULTS", "TIMES", "SCANS", "PAGE"):
        monkeypatch.setattr(reduced_page, name, tmp_path / name.lower())
    row = {"form": "JPEG", "size_px": 512, "whole_ms": 8.0, "reduced_ms": [2.0, 4.0]}
    (tmp_path / "times").write_text(json.dumps({"inputs_px": [64, 128], "repeats": 5, "load": 1.0, "rows": [row]}))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "phantoms--linear.json").write_text(json.dumps(cell("phantoms", "phantoms", 1000, 2)))
    one = {"side_px": 512, "images": 108, "decoders_s": 10.8, "decode_ms": 100.0}
    rows = [
        {**one, "decode": "full", "wall_s": 54.0, "cpu_s": 30.0},
        {**one, "decode": "reduced", "wall_s": 18.0, "cpu_s": 14.0, "decoders_s": 1.08, "decode_ms": 10.0},
    ]
    few = {"images": 8, "wall_s": 9.0, "cpu_s": 10.0}
    scans = {"detector": "linear", "input_px": 64, "load": 1.0, "few": few, "rows": rows}
    (tmp_path / "scans").write_text(json.dumps(scans))
    reduced_page.write_page()
    page = (tmp_path / "page").read_text()
    assert "| JPEG, 512 x 512 | 8.0 | 2.0 | 4.0 |" in page
    assert "| 108 of 512 x 512, reduced | 18.0 | 14.0 | 6.00 (3.0) | 11.11 (5.0) | 40.0 (5.0) |" in page
    assert "Not measured: linear on elpv doubled, elpv, br35h doubled, boards; padim on" in page
    assert page.endswith("Met.\n")


def test_the_cpu_of_children_is_a_commands_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduced_scan, "POLL_S", 0.01)
    busy = "import time\nwhile time.process_time() < 0.5: pass\ntime.sleep(0.3)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    spent = reduced_scan.spent_by([sys.executable, "-c", script])
    assert spent.cpu_s >= 0.4
    assert spent.decoders_s == 0
