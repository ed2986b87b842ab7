"""An evaluation begins with what the run found and missed, and says where the threshold is what is wrong."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from ad_jobs.cli.show_evaluation import METRICS, ORACLE, evaluation_view


def judged(found: int, missed: int, could: float | None, threshold: float | None = 3.0) -> dict[str, Any]:
    """A model's part of an evaluation: 20 normal images, one of them flagged."""
    rate = missed / max(found + missed, 1)
    return {
        "kind": "padim",
        "n_normal": 20,
        "n_failed": 0,
        "n_skipped": 0,
        "n_anomalous": found + missed,
        "at_threshold": {
            "threshold": threshold,
            "rule": None if threshold is None else "score > threshold",
            "true_positive": found,
            "false_negative": missed,
            "false_positive": 1,
            "true_negative": 19,
            "fpr": {"value": 0.05, "low": 0.001, "high": 0.249},
            "fnr": {"value": rate, "low": rate / 2, "high": (1 + rate) / 2},
            "tpr_at_5_percent_fpr": could,
        },
        **{name: {"value": 0.919, "low": 0.9, "high": 0.95} for name in (*METRICS, *ORACLE)},
    }


def text(first: dict[str, Any], others: dict[str, Any] | None = None, oracle: bool = False, **more: Any) -> str:
    whole = {"model_id": "aaa", "models": others or {}, "pixel_note": None, "n_missing": 0, "decision": None} | more
    file = io.StringIO()
    Console(file=file, width=200).print(evaluation_view(whole | first, oracle=oracle))
    return file.getvalue()


def test_it_begins_with_what_the_run_found() -> None:
    lines = text(judged(6, 4, 0.7)).splitlines()
    assert lines[0].strip() == "padim aaa, by the run's threshold (score > threshold, 3):"
    assert lines[1].strip() == "flagged 7 of 30 labelled images: found 6 of 10 anomalous, missed 4, 1 of 20 normal"
    assert lines[2].strip() == "sensitivity 60.0% (30.0% to 80.0%), specificity 95.0% (75.1% to 99.9%)"
    assert "MISSED" not in text(judged(6, 4, 0.7))


def test_a_threshold_that_misses_what_scores_would_find_is_told() -> None:
    told = text(judged(1, 74, 0.8))
    assert "MOST ARE MISSED BY THE THRESHOLD" in told
    assert "80% of the anomalous ones would be" in told
    # Where the scores find no more, another threshold would not either.
    assert "MISSED" not in text(judged(1, 74, 0.02))
    assert "MISSED" not in text(judged(0, 0, None))


def test_labelled_images_that_were_not_scored_are_told() -> None:
    assert "NOT JUDGED" not in text(judged(6, 4, 0.7))
    assert "NOT JUDGED, although labelled: 2 that failed, 1 that were" in text(
        judged(6, 4, 0.7) | {"n_failed": 2, "n_skipped": 1}
    )


def test_every_model_and_the_decision_are_named() -> None:
    told = text(judged(6, 4, 0.7), {"bbb": judged(2, 8, 0.3, threshold=None)}, decision="0123456789ab")
    assert "padim aaa, by decision 0123456789ab (score > threshold, 3):" in told
    assert "padim bbb, by decision 0123456789ab:" in told


def test_what_labels_chose_is_shown_on_request() -> None:
    assert "f1_max" not in text(judged(6, 4, 0.7))
    assert "f1_max" in text(judged(6, 4, 0.7), oracle=True)


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "not in the run."),
        (4, "not in the run: 4 of them were left out of it (--where, --since)."),
        (None, "leaves something out"),
    ],
)
def test_it_says_which_labels_a_condition_left_out(count: int | None, told: str) -> None:
    found = text(judged(6, 4, 0.7), n_missing=5, labels={"not_selected": count})
    assert "5 labels are of images" in found
    assert told in found


def test_the_weakest_subgroups_are_named() -> None:
    def group(value: str | None, sensitivity: float | None, specificity: float) -> dict[str, Any]:
        rates = {"sensitivity": sensitivity, "specificity": specificity}
        intervals = {
            name: {"value": rate, "low": rate and rate - 0.1, "high": rate and rate + 0.1}
            for name, rate in rates.items()
        }
        return {"by": "modality", "value": value, "n_normal": 40, "n_anomalous": 20, **intervals}

    groups = [group("MR", 0.9, 0.95), group("CT", 0.3, 0.99), group(None, None, 0.8)]
    told = text(judged(6, 4, 0.7) | {"subgroups": groups})
    assert "lowest sensitivity of 2 subgroups: modality CT, 30.0% (20.0% to 40.0%) of 20" in told
    assert "lowest specificity of 3 subgroups: modality others, 80.0% (70.0% to 90.0%) of 40" in told
    assert "subgroups" not in text(judged(6, 4, 0.7) | {"subgroups": groups[:1]})
