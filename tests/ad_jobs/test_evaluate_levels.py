"""An evaluation of whole studies and series, and one by what reviewers said."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runkit as kit
from rich.console import Console
from sklearn.metrics import average_precision_score, roc_auc_score

from ad_jobs.cli.show_evaluation import evaluation_view
from ad_jobs.decide import decide
from ad_jobs.errors import UsageError
from ad_jobs.evaluate import evaluate
from ad_jobs.results.read import read_scores
from ad_jobs.results.run import held_out_copy, write_record
from ad_jobs.reviewing.verdicts import add, noted
from ad_jobs.scoring.held_out import Scored, to_parquet
from cluster import storage

STUDIES, FRAMES = 20, 6
RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(STUDIES, FRAMES))
# Of the last six studies one frame each is anomalous.
ANOMALOUS = {study: int(RNG.integers(FRAMES)) for study in range(14, 20)}
for study, frame in ANOMALOUS.items():
    SCORES[study, frame] += 2
TRUTH = np.array([study in ANOMALOUS for study in range(STUDIES)])


def uri(study: int, frame: int) -> str:
    return f"/a/{study}/{frame}.dcm"


@pytest.fixture
def run(tmp_path: Path) -> str:
    folder = tmp_path / "run"
    rows = [
        kit.scored(
            study * FRAMES + frame,
            score=float(SCORES[study, frame]),
            flagged=bool(SCORES[study, frame] > 2),
            threshold=2.0,
            uri=uri(study, frame),
            content_sha256=f"{study * FRAMES + frame:064x}",
            study_uid=f"1.{study}",
            series_uid=f"1.{study}.{frame // 3}",
        )
        for study in range(STUDIES)
        for frame in range(FRAMES)
    ]
    kit.write_part(folder, [*rows, kit.unscored(STUDIES * FRAMES, "truncated")])
    body = to_parquet(
        Scored(f"x{i}", 0, f"{i // 4}", False, float(score), f"{i // 2}")
        for i, score in enumerate(np.random.default_rng(5).normal(size=400))
    )
    record = kit.record(folder, STUDIES * FRAMES + 1)
    update = {"calibration_id": "c" * 12, "held_out_sha256": hashlib.sha256(body).hexdigest()}
    storage.write_bytes(held_out_copy(str(folder), kit.MODEL), body)
    write_record(str(folder), record.model_copy(update={"models": [record.models[0].model_copy(update=update)]}))
    return str(folder)


@pytest.fixture
def labels(tmp_path: Path) -> str:
    """Every other frame has a label, and every anomalous one; and an image that is not in the run."""
    lines = ["image,anomalous", "/a/gone.dcm,1"]
    for study in range(STUDIES):
        for frame in range(FRAMES):
            if frame % 2 == 0 or ANOMALOUS.get(study) == frame:
                lines.append(f"{uri(study, frame)},{int(ANOMALOUS.get(study) == frame)}")
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def shown(evaluation: dict[str, Any]) -> str:
    file = io.StringIO()
    Console(file=file, width=200).print(evaluation_view(evaluation))
    return file.getvalue()


def test_a_study_is_anomalous_if_a_frame_of_it_is(run: str, labels: str) -> None:
    found = evaluate(run, labels, bootstrap=50, level="study")
    highest, flagged = SCORES.max(axis=1), (SCORES > 2).any(axis=1)
    at = found["at_threshold"]
    assert (found["n_normal"], found["n_anomalous"], found["n_missing"]) == (14, 6, 1)
    assert (at["true_positive"], at["false_positive"]) == ((flagged & TRUTH).sum(), (flagged & ~TRUTH).sum())
    assert found["image_auroc"]["value"] == pytest.approx(roc_auc_score(TRUTH, highest.astype(np.float32)))
    assert found["image_ap"]["value"] == pytest.approx(average_precision_score(TRUTH, highest.astype(np.float32)))
    assert found["image_auroc"]["low"] is not None
    assert (found["level"], found["resampled_by"], found["pixel_auroc"]["value"]) == ("study", "study", None)
    assert json.loads(Path(run, "evaluation.study.json").read_text()) == found
    assert not Path(run, "evaluation.json").exists()
    assert f"of 20 labelled studies: found {at['true_positive']} of 6 anomalous" in shown(found)


def test_a_series_is_judged_by_its_own_frames(run: str, labels: str) -> None:
    found = evaluate(run, labels, bootstrap=0, level="series")
    assert (found["n_normal"], found["n_anomalous"]) == (34, 6)


def test_a_decision_is_judged_by_what_it_flags(run: str, labels: str) -> None:
    of_studies = decide(run=run, max_fpr=0.1, level="study")
    found = evaluate(run, labels, bootstrap=0, level="study", decision=of_studies["decision_id"])
    at = found["at_threshold"]
    assert at["true_positive"] + at["false_positive"] == of_studies["models"][0]["flagged"] > 0
    assert Path(run, "decisions", f"{of_studies['decision_id']}.evaluation.study.json").exists()
    with pytest.raises(UsageError, match=r"--level image of decision .* which flags study"):
        evaluate(run, labels, bootstrap=0, decision=of_studies["decision_id"])
    of_frames = decide(run=run, top=9)
    found = evaluate(run, labels, bootstrap=0, level="study", decision=of_frames["decision_id"])
    ninth = np.sort(SCORES.ravel())[-9]
    flagged = (ninth <= SCORES).any(axis=1)
    assert found["at_threshold"]["true_positive"] == (flagged & TRUTH).sum()
    assert found["at_threshold"]["false_positive"] == (flagged & ~TRUTH).sum()


def say(run: str, study: int, frame: int, verdict: str, reviewer: str = "ann") -> None:
    rows = read_scores(run, columns=["object_id", "frame", "content_sha256", "uri", "flagged"])
    (row,) = rows[rows["uri"] == uri(study, frame)].to_dict("records")
    add(run, [noted(row, reviewer, verdict)])


def test_verdicts_of_reviewers_are_labels(run: str) -> None:
    with pytest.raises(UsageError, match="without a verdict"):
        evaluate(run, "reviews", bootstrap=0)
    for study in (0, 1, 2):
        say(run, study, 0, "rejected")
    for study in (14, 15):
        say(run, study, ANOMALOUS[study], "accepted")
    say(run, 16, ANOMALOUS[16], "supplemented")
    # Of one both is said.
    say(run, 3, 1, "rejected")
    say(run, 3, 1, "accepted", "bob")
    found = evaluate(run, "reviews", bootstrap=0)
    assert (found["n_normal"], found["n_anomalous"], found["labels"]["disputed"]) == (3, 3, 1)
    assert found["labels"]["uri"] == f"{run}/reviews"
    text = shown(found)
    assert "Judged is what was reviewed" in text
    assert "1 frame left out, of which reviewers say both." in text
    by_study = evaluate(run, "reviews", bootstrap=0, level="study")
    assert (by_study["n_normal"], by_study["n_anomalous"]) == (3, 3)
