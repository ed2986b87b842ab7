"""What the command line tells people of a fit, an evaluation and the detectors."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ad_jobs.cli import show
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


def test_an_evaluation_shows_what_the_runs_threshold_does():
    value: dict[str, Any] = {name: {"value": None, "low": None, "high": None} for name in show.METRICS}
    value |= {"n_normal": 20, "n_anomalous": 10, "pixel_note": None}
    value["at_threshold"] = {
        "threshold": 3.0,
        "fpr": {"value": 0.05, "low": 0.001, "high": 0.249},
        "fnr": {"value": 1.0, "low": 0.692, "high": 1.0},
    }
    console = Console(file=io.StringIO(), width=100)
    console.print(show.metrics_table(value))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert any("normal images flagged" in line and "0.0500" in line for line in lines)
    assert any("anomalous images missed" in line and "0.6920 to 1.0000" in line for line in lines)


@pytest.mark.parametrize("kind", DETECTORS)
def test_every_option_of_a_detector_is_shown_with_its_default(kind: str):
    text = show.detector_text(show.detector_row(DETECTORS[kind]))
    (fast,) = (line for line in text.splitlines() if line.lstrip().startswith("--preset fast"))
    for option in configure(kind, dict(preset(kind, "fast").options)).model_dump():
        assert f", {option} " in fast
