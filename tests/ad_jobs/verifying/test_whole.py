"""What decoding whole frames would change is told of a model that decodes reduced ones, and of no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import reducedkit as kit

from ad_jobs.archive.fetching import FetchedObject, Source
from ad_jobs.cli.show import verification_text
from ad_jobs.errors import UsageError
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.images.policy import Limits
from ad_jobs.run_specs import VerifySpec
from ad_jobs.scoring.model_store import open_model
from ad_jobs.scoring.scorer import FrameScore, Scorer
from ad_jobs.verifying.record import Judge
from ad_jobs.verifying.whole import DecodedWhole, WholeFrames

SIZE_PX, SIDE_PX = 16, 67
LIMITS = Limits()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    files = [kit.jpeg_2000(number, SIDE_PX) for number in range(20)]
    return kit.fitted_pair(tmp_path_factory.mktemp("models"), files, SIZE_PX)


def told(uri: str, files: list[bytes], limits: Limits = LIMITS, **calibration: Any) -> tuple[DecodedWhole, list[Any]]:
    """What is told of these files, and their scores decoded as the model says and whole."""
    model = open_model(uri)
    judge = Judge(model, model.detector, model.calibration.model_copy(update=calibration))
    scorer = Scorer(model.detector)
    whole = WholeFrames(judge, scorer, limits)
    scores = []
    with GuardedDecoder() as decoder:
        for number, data in enumerate(files):
            ways = [model.policy, model.policy.model_copy(update={"decode": "full"})]
            found = list(scorer.score(kit.pixels(data, way) for way in ways))
            scores.append([frame.score for frame in found])
            whole.add(FetchedObject(Source(number, f"/{number}"), data, False, None, 0.0), found[:1], decoder)
    return whole.told(), scores


FILES = [kit.jpeg_2000(number, SIDE_PX) for number in range(30, 35)]


def test_differences_are_told_beside_the_spread_of_normals(models: dict[str, str]) -> None:
    found, scores = told(models["reduced"], FILES)
    changes = sorted(abs(whole - reduced) for reduced, whole in scores)
    assert (found["frames"], found["by_code"]) == (5, {})
    assert (found["largest"], found["median"]) == (pytest.approx(changes[-1]), pytest.approx(changes[2]))
    assert found["spread"] == open_model(models["reduced"]).calibration.normal_spread > 0


def test_flags_that_would_change_either_way(models: dict[str, str]) -> None:
    _, scores = told(models["reduced"], FILES)
    for reduced, whole in scores:
        between, _ = told(models["reduced"], FILES, threshold=(reduced + whole) / 2)
        assert (between["flagged"] >= 1, between["unflagged"] >= 1) == (whole > reduced, whole < reduced)


def test_a_model_of_whole_frames_has_nothing_to_compare(models: dict[str, str]) -> None:
    found, _ = told(models["full"], FILES)
    assert (found["decode"], found["frames"], found["largest"], found["by_code"]) == ("full", 0, None, {})
    assert "decodes whole frames: there is nothing to compare" in text(found)


def test_what_cannot_be_decoded_whole_is_counted_by_its_code(models: dict[str, str]) -> None:
    found, _ = told(models["reduced"], FILES[:2], Limits(max_pixels=SIDE_PX))
    assert (found["frames"], found["by_code"]) == (0, {"too_many_pixels": 2})
    assert "none of the sample was scored whole; 2 would have no score: too_many_pixels" in text(found)


def test_objects_without_a_score_are_passed_over(models: dict[str, str]) -> None:
    model = open_model(models["reduced"])
    whole = WholeFrames(Judge(model, model.detector, model.calibration), Scorer(model.detector), Limits())
    none: list[FrameScore] = []
    whole.add(FetchedObject(Source(0, "/0"), b"", False, None, 0.0), none, GuardedDecoder())
    assert whole.told()["by_code"] == {}


def text(whole: DecodedWhole, **said: Any) -> str:
    base = {"ok": True, "run_id": "r", "parts": 1, "heatmap_parts": 1, "sampled": 1, "scored": 1, "tolerance": 1e-5}
    checked = {"signature": "unsigned", "names_checked": True, "parent_checked": True}
    return verification_text({**base, **checked, "whole": json.loads(json.dumps([{**whole, **said}]))})


def test_people_are_told_in_a_sentence(models: dict[str, str]) -> None:
    found, _ = told(models["reduced"], FILES)
    said = text(found, largest=0.02, median=0.005, spread=0.1, unflagged=1, flagged=2)
    assert "whole, 5 score otherwise by 0.02 at most and 0.005 in the median, 20.00% and 5.00% of the spread" in said
    assert "1 would no longer be flagged, 2 would be" in said
    assert "spread" not in text(found, spread=None), "of a calibration by an earlier version"


def test_full_needs_a_sample(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--full --sample 0"):
        VerifySpec(run=str(tmp_path), sample=0, full=True)
