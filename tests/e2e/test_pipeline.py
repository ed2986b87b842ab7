"""A small phantom archive through every verb of the command line, as a user runs them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow.parquet as pq
import pytest

from ad_jobs.phantom import PhantomArchive, generate
from ad_jobs.phantom.scanners import INSTITUTIONS
from ad_jobs.results import open_heatmap, read_run, read_scores

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.ray

FIT = ("fit", "--detector", "mkd", "--size", "64", "--epochs", "12", "--identifiers", "plain")


def retroscan(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ad_jobs", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=800)


class Outcome(NamedTuple):
    root: Path
    phantoms: PhantomArchive
    # Stdout and stderr of every verb.
    log: str
    scanned: dict[str, Any]
    evaluation: dict[str, Any]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    root = tmp_path_factory.mktemp("pipeline")
    phantoms = generate(
        root / "phantoms",
        train=40,
        calibration=16,
        normals=16,
        anomalous=12,
        multiframe=2,
        broken=6,
        non_images=3,
        size_px=96,
    )
    manifest, model, run = root / "manifest", root / "model", root / "run"
    said = []

    def verb(*arguments: str | Path) -> str:
        done = retroscan(*arguments)
        said.append(done.stdout + done.stderr)
        assert done.returncode == 0, done.stderr
        return done.stdout

    verb("index", phantoms.archive, "--out", manifest, "--headers")
    verb(*FIT, "--normal", phantoms.train, "--out", model)
    verb("calibrate", model, "--normal", phantoms.calibration, "--max-fpr", "0.1")
    scanned = json.loads(verb("scan", manifest, "--model", model, "--out", run, "--heatmaps", "all", "--json"))
    evaluation = json.loads(verb("evaluate", run, "--labels", phantoms.labels, "--bootstrap", "50", "--json"))
    verb("decide", run, "--max-fpr", "0.1")
    verb("report", run)
    verb("verify", run, "--sample", "10")
    return Outcome(root, phantoms, "\n".join(said), scanned, evaluation)


def test_every_object_is_accounted_for_once(outcome: Outcome) -> None:
    counts = outcome.scanned["counts"]
    objects = outcome.phantoms.images + len(outcome.phantoms.expected)
    assert counts["scored"] + counts["failed"] + counts["skipped"] == counts["objects"] == objects
    assert re.search(
        rf"{counts['scored']} scored \+ {counts['failed']} failed \+ {counts['skipped']} skipped", outcome.log
    )
    scores = read_scores(str(outcome.root / "run"))
    assert not scores.duplicated(["object_id", "frame"]).any()
    assert (scores.status == "scored").sum() == outcome.phantoms.frames


def test_a_decision_flags_by_the_rule_of_the_calibration(outcome: Outcome) -> None:
    run = outcome.root / "run"
    (path,) = (run / "decisions").glob("*.parquet")
    decided = pq.read_table(path).to_pandas()
    scores = read_scores(str(run), where="status = 'scored'")
    # The rule that the run was judged by is the same, at a p of (1 + k) / (n + 1): it flags as many, or fewer.
    both = scores.merge(decided, on=["object_id", "frame", "model_id"], suffixes=("", "_decided"))
    assert len(both) == len(decided) == len(scores)
    assert (both["score"] == both["score_decided"]).all()
    assert (both["flagged"] | ~both["flagged_decided"]).all()
    assert re.search(r"decision [0-9a-f]{12} of run .*, --max-fpr 0.1\n", outcome.log)
    assert "at most 10.00% are flagged" in outcome.log


def test_every_bad_object_has_its_reason(outcome: Outcome) -> None:
    scores = read_scores(str(outcome.root / "run"))
    bad = scores[scores.status != "scored"]
    archive = f"{outcome.phantoms.archive.resolve()}/"
    assert dict(zip(bad.uri.str.removeprefix(archive), bad.error_code, strict=True)) == outcome.phantoms.expected


def test_no_planted_identifier_leaks(outcome: Outcome) -> None:
    words = [word for word in outcome.phantoms.planted if len(word) > 3]
    assert len(words) > 100
    pattern = re.compile("|".join(re.escape(word) for word in words))
    planted = outcome.phantoms.archive / next(iter(outcome.phantoms.expected))
    assert any(pattern.search(path.read_bytes().decode("latin-1")) for path in planted.parent.parent.rglob("*.dcm"))
    assert not pattern.search(outcome.log)
    for folder in ("manifest", "model", "run"):
        for path in (outcome.root / folder).rglob("*"):
            if not path.is_file():
                continue
            found = pattern.search(path.read_bytes().decode("latin-1"))
            assert found is None, f"{path} holds {found.group()!r}" if found else ""
            # Compressed: read what it says.
            if path.suffix == ".parquet":
                assert not pattern.search(pq.read_table(path).to_pandas().to_csv()), path


def test_sites_are_told_and_a_calibration_has_them_where_that_was_asked(outcome: Outcome) -> None:
    told = {row["value"]: row["n_normal"] for row in outcome.evaluation["subgroups"] if row["by"] == "site"}
    assert set(told) == set(INSTITUTIONS)
    kept = sorted((outcome.root / "model" / "calibrations").glob("*.parquet"))
    columns = [pq.read_table(path).to_pydict().get("site") for path in kept]
    # That of the fit, and the one behind it.
    assert sorted(map(bool, columns)) == [False, True]
    assert {site for column in columns for site in column or ()} <= set(INSTITUTIONS)


def test_metrics_and_heatmaps(outcome: Outcome) -> None:
    evaluation = outcome.evaluation
    assert evaluation["n_normal"] + evaluation["n_anomalous"] == outcome.phantoms.frames
    for name in (
        "image_auroc",
        "image_ap",
        "f1_max",
        "accuracy_max",
        "accuracy_zero_fn",
        "pixel_auroc",
        "aupro",
        "pixel_ap",
    ):
        assert evaluation[name]["low"] <= evaluation[name]["value"] <= evaluation[name]["high"]
    # Twelve epochs at 64 px: direction, not accuracy.
    assert evaluation["pixel_auroc"]["value"] > 0.7
    scores = read_scores(str(outcome.root / "run"))
    row = scores[scores.status == "scored"].iloc[0]
    heatmap = open_heatmap(str(outcome.root / "run"), row.heatmap)
    assert heatmap.values.shape == (64, 64)
    assert heatmap.on_source().shape == (row["rows"], row["columns"])
    assert read_run(str(outcome.root / "run")).counts.scored == outcome.scanned["counts"]["scored"]


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    found = re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert found, f"{page} has no {language}"
    return found


def test_the_queries_of_the_columns_page_run(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(outcome.root)
    # One more is over several runs: tests/ad_jobs/results/test_newest.py.
    of_one_run = [query for query in blocks("docs/columns.md", "sql") if "'run/scores/*.parquet'" in query]
    by_manufacturer, by_outcome = (duckdb.sql(query).fetchall() for query in of_one_run)
    assert sum(row[1] for row in by_manufacturer) == outcome.phantoms.frames
    counts = outcome.scanned["counts"]
    assert dict(by_outcome)["scored"] == counts["scored"]
    assert sum(row[1] for row in by_outcome) == counts["objects"]


@pytest.mark.parametrize("page", ["README.md", "docs/columns.md"])
def test_the_python_of_a_page_runs(page: str, outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(outcome.root)
    names: dict[str, Any] = {}
    (code,) = blocks(page, "python")
    exec(code.replace("s3://results/run-1", "run"), names)
    row = names["worst"].iloc[0]
    assert row.flagged
    overlay = names["heatmap"]
    overlay = overlay.on_source() if page == "docs/columns.md" else overlay
    assert overlay.shape == (row["rows"], row["columns"])
    assert 0 < overlay.max() <= 1


def test_the_report_is_one_page(outcome: Outcome) -> None:
    page = (outcome.root / "run" / "report" / "index.html").read_text()
    assert outcome.scanned["run_id"] in page
    assert not re.search(r"""(src|href)=["']https?:""", page)


def test_score_gives_the_scans_number(outcome: Outcome) -> None:
    scores = read_scores(str(outcome.root / "run"))
    row = scores[(scores.status == "scored") & (scores.frame == 0)].iloc[-1]
    done = retroscan("score", outcome.root / "model", row.uri)
    found = json.loads(done.stdout)[0]
    assert found["score"] == pytest.approx(row.score, abs=1e-5)
    assert found["flagged"] == row.flagged


def test_the_same_fit_again_does_nothing_and_another_is_refused(outcome: Outcome) -> None:
    model = outcome.root / "model"
    before = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    done = retroscan(*FIT, "--normal", outcome.phantoms.train, "--out", model)
    assert done.returncode == 0
    assert "nothing to do" in " ".join(done.stderr.split())
    assert before == {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    other = retroscan(*FIT, "--normal", outcome.phantoms.train, "--out", model, "--seed", "1")
    assert other.returncode == 2
    assert "another fit" in other.stderr


def test_fit_says_how_far_it_is(outcome: Outcome) -> None:
    assert re.search(r"distil, epoch 12 of 12: loss [\d.]+", outcome.log)
