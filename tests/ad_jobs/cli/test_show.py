"""What the command line tells people of a fit, an evaluation and the detectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ad_jobs.cli import show
from ad_jobs.scoring.calibration import Calibration
from ad_jobs.scoring.thresholds import threshold_for_fpr
from models.registry import DETECTORS, configure, preset

RECORD = {"model_id": "0123456789ab", "kind": "linear", "data": {"n_fitted": 99, "n_held_out": 11}}


def calibration(count: int) -> dict[str, Any]:
    scores = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    return threshold_for_fpr(scores, 0.01).model_dump() | {"n_normal": count}


@pytest.mark.parametrize(("count", "guessed"), [(11, True), (99, True), (100, False)])
def test_a_fit_says_what_its_first_threshold_is_worth(count: int, guessed: bool):
    text = show.fitted_text(RECORD, calibration(count), "./model")
    assert "normal images flagged, 95 % interval" in text
    assert f"of {count} normal" in text
    assert ("a guess, from fewer than 100 images" in text) == guessed
    assert ("retroscan calibrate" in text) == guessed
    rest = {"model_id": "0", "n_anomalous": 0, "heatmap_low": 0, "heatmap_high": 1, "source": "", "set_at": ""}
    assert Calibration.model_validate(calibration(count) | rest).guessed == guessed


BALANCED = {
    "run_id": "r",
    "counts": {
        **{"objects": 36, "scored": 30, "failed": 4, "skipped": 2, "rows": 36, "flagged": 3, "heatmaps": 3},
        "by_code": {"corrupt": 4},
    },
}


@pytest.mark.parametrize(
    ("manifest", "lines"),
    [
        (
            {"where": None, "objects": 36, "listed": 36, "undecided": 0},
            ["scored 30 + failed 4 + skipped 2 = manifest 36"],
        ),
        (
            {"where": "rows > 5", "objects": 36, "listed": 347, "undecided": 0},
            ["manifest 347 = selected 36 + not selected 311", "scored 30 + failed 4 + skipped 2 = selected 36"],
        ),
        (
            {"where": "rows > 5", "objects": 36, "listed": 347, "undecided": 11},
            [
                "manifest 347 = selected 36 + not selected 300 + undecided 11 (the condition is NULL, as for objects "
                "without a header)",
                "scored 30 + failed 4 + skipped 2 = selected 36",
            ],
        ),
        (
            {"where": None, "objects": 36, "listed": 347, "undecided": 0, "already": 311},
            ["manifest 347 = selected 36 + already in p 311", "scored 30 + failed 4 + skipped 2 = selected 36"],
        ),
        (
            {"where": "rows > 5", "objects": 36, "listed": 347, "undecided": 1, "already": 300},
            [
                "manifest 347 = selected 36 + already in p 300 + not selected 10 + undecided 1 "
                "(the condition is NULL, as for objects without a header)",
                "scored 30 + failed 4 + skipped 2 = selected 36",
            ],
        ),
        # By an earlier version.
        (
            {"where": "rows > 5", "objects": 36, "listed": None, "undecided": None},
            ["scored 30 + failed 4 + skipped 2 = selected 36"],
        ),
    ],
)
def test_a_scan_accounts_for_the_whole_manifest(manifest: dict[str, Any], lines: list[str]):
    parent = {"run_id": "p", "retried": 0, "widened": 0} if "already" in manifest else None
    text = show.balance_text(BALANCED | {"manifest": manifest, "parent": parent}, "./run")
    assert text.splitlines()[: len(lines)] == lines
    assert len(text.splitlines()) == len(lines) + 2


@pytest.mark.parametrize("kind", DETECTORS)
def test_every_option_of_a_detector_is_shown_with_its_default(kind: str):
    text = show.detector_text(show.detector_row(DETECTORS[kind]))
    (fast,) = (line for line in text.splitlines() if line.lstrip().startswith("--preset fast"))
    for option in configure(kind, dict(preset(kind, "fast").options)).model_dump():
        assert f", {option} " in fast
