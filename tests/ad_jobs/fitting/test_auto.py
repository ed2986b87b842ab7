"""`fit --detector auto` without a cluster: candidates are made models, and what is kept of them is a whole model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cutkit import cuts, once
from fusekit import RANDOM, fitted, normals
from scankit import SIZE_PX, picture
from typer.testing import CliRunner

from ad_jobs.archive.sources import read_source
from ad_jobs.cli.app import app
from ad_jobs.cli.show import fitted_text
from ad_jobs.cli.show_auto import auto_text
from ad_jobs.errors import JobError, UsageError
from ad_jobs.fitting import auto, candidates, synthetic
from ad_jobs.fitting.auto import HeldOutFrames
from ad_jobs.fitting.candidates import Candidate
from ad_jobs.fitting.choosing import Option
from ad_jobs.fitting.fusion import Fitted, fused
from ad_jobs.fitting.intent import resolve
from ad_jobs.fuse import fuse
from ad_jobs.score import score
from ad_jobs.scoring.model_store import open_model, read_record
from ad_jobs.specs import FitSpec

HELD_OUT = "0" * 64


class Made:
    """Fits that make small models, and count; `broken` kinds fail."""

    def __init__(self, source: str, *broken: str) -> None:
        self.source, self.broken = source, broken
        self.done: list[str] = []

    def fit(self, spec: FitSpec) -> dict[str, Any]:
        if read_record(spec.out) is not None:
            return self.told(spec.out)
        if spec.detector in self.broken:
            raise JobError("It broke.", "Mend it.")
        self.done.append(spec.detector)
        options = RANDOM if spec.detector == "padim" else None
        fitted(spec.out, self.source, spec.detector, SIZE_PX, seed=spec.seed, options=options)
        path = Path(spec.out, "detector.json")
        digest = resolve(spec).digest(read_source(spec.normal), [])
        path.write_text(json.dumps(json.loads(path.read_text()) | {"fit_digest": digest}))
        return self.told(spec.out)

    def told(self, folder: str) -> dict[str, Any]:
        found = read_record(folder)
        assert found is not None
        data = {**found["data"], "held_out_sha256": HELD_OUT}
        return {**found, "data": data, "seconds": 1.5, "score_cpu_ms": {"linear": 1.0, "padim": 2.0}[found["kind"]]}

    def held_out(self, candidate: Candidate) -> HeldOutFrames:
        self.size_px = candidate.intent.input.size_px
        frames = [np.rint(65535 * picture(n, SIZE_PX))[None].astype(np.uint16) for n in range(3)]
        return HeldOutFrames(frames, HELD_OUT)

    def fuse(self, models: Sequence[str], out: str) -> dict[str, Any]:
        self.done.append("fused")
        return fuse(model=list(models), out=out)

    @property
    def fits(self) -> auto.Fits:
        return auto.Fits(self.fit, self.held_out, self.fuse)


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FitSpec:
    """Of two kinds alone."""
    costs = {kind: candidates.COSTS_S[kind] for kind in ("linear", "padim")}
    monkeypatch.setattr(candidates, "COSTS_S", costs)
    # A defect of a kind an image.
    monkeypatch.setattr(synthetic, "FRAMES", 3)
    source = normals(str(tmp_path / "normal"))
    return FitSpec(detector="auto", normal=source, out=str(tmp_path / "model"), budget="2h")


def chosen_by(spec: FitSpec, made: Made) -> dict[str, Any]:
    return auto.fit_best(spec, read_source(spec.normal), made.fits)


def test_the_best_is_a_whole_model_of_its_own_kind(spec: FitSpec, tmp_path: Path) -> None:
    made = Made(spec.normal)
    record = chosen_by(spec, made)
    told = record["auto"]
    rows = {row["detector"]: row for row in told["candidates"]}
    # The largest of the candidates' inputs.
    assert made.size_px == (128, 128)
    assert {"linear", "padim"} <= set(rows)
    kept = rows[told["kept"]]
    assert kept["why"] == "kept"
    assert (record["model_id"], record["kind"]) == (kept["model_id"], told["kept"].partition("-")[0])
    for row in rows.values():
        assert set(row["auroc"]) == set(told["kinds"])
        assert row["found"] == pytest.approx(np.mean(list(row["auroc"].values())), abs=1e-3)
    assert (told["budget_s"], told["judged_on"]) == (7200, 3)
    # It scores as the candidate does, calibrated as it was.
    image = tmp_path / "normal" / "03.png"
    (one,), (other,) = (score(model=place, images=[image]) for place in (spec.out, kept["folder"]))
    assert (one["score"], one["threshold"]) == (other["score"], other["threshold"])
    # And the very command again finds it done, while another is refused.
    again = auto.already(spec, read_source(spec.normal))
    assert again is not None
    assert again["model_id"] == record["model_id"]
    with pytest.raises(UsageError, match="One folder holds one model"):
        auto.already(spec.model_copy(update={"seed": 1}), read_source(spec.normal))
    calibration = open_model(spec.out).calibration.model_dump(mode="json")
    assert f"{told['kept']} is kept: of those" in fitted_text(record | {"data": _DATA}, calibration, spec.out)


_DATA = {"n_fitted": 18, "n_held_out": 6}


def test_an_interrupted_choice_goes_on_with_what_is_fitted(spec: FitSpec) -> None:
    first = Made(spec.normal, "padim")
    kept = chosen_by(spec, first)
    assert kept["kind"] == "linear"
    Path(spec.out, "detector.json").unlink()
    then = Made(spec.normal)
    told = chosen_by(spec, then)["auto"]
    assert "linear" not in then.done
    assert then.done[0] == "padim"
    assert [row["detector"] for row in told["candidates"]][:2] == ["linear", "padim"]


@pytest.mark.full
def test_a_choice_that_ends_at_any_moment_comes_out_the_same(spec: FitSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def both(options: Sequence[Option]) -> Option | None:
        return None if len(options) < 2 else Option("fused-linear-padim", options[0].judged, 3.0, (0, 1))

    monkeypatch.setattr(auto, "fusion_of", both)
    monkeypatch.setattr(auto, "chosen", lambda options: options[-1])
    monkeypatch.setattr(auto, "judge", once(auto.judge, lambda detectors, *_, **__: type(detectors[0])))
    monkeypatch.setattr("ad_jobs.fuse.fused", once(fused, _places))
    made = Made(spec.normal)
    for cut in cuts(lambda: chosen_by(spec, made)):
        assert cut < 40
        # Nothing half is taken for whole.
        assert read_record(spec.out) is None
        for folder in Path(spec.out, "fit", "candidates").glob("*/detector.json"):
            open_model(str(folder.parent))
    record, whole = (
        read_record(spec.out),
        chosen_by(spec.model_copy(update={"out": f"{spec.out}-2"}), Made(spec.normal)),
    )
    assert record is not None
    assert record["model_id"] == whole["model_id"] == open_model(spec.out).model_id
    assert open_model(spec.out).calibration.id == open_model(f"{spec.out}-2").calibration.id
    untimed = [
        {name: row.get(name) for name in ("detector", "why", "found", "auroc", "model_id")} for row in _rows(record)
    ]
    assert untimed == [{name: row.get(name) for name in untimed[0]} for row in _rows(whole)]


def _places(members: Sequence[Fitted], *_: object, **__: object) -> tuple[str, ...]:
    return tuple(member.place for member in members)


def _rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = record["auto"]["candidates"]
    return found


def test_a_budget_is_no_option_of_what_was_chosen(spec: FitSpec, caplog: pytest.LogCaptureFixture) -> None:
    record = chosen_by(spec, Made(spec.normal))
    with caplog.at_level("INFO", "retroscan.fit"):
        assert auto.already(spec, read_source(spec.normal)) == record
        assert "--budget" not in caplog.text
        assert auto.already(spec.model_copy(update={"budget": 600.0}), read_source(spec.normal)) == record
    assert "It was chosen with --budget 120m: for a choice with 10m name another --out." in caplog.text


def test_an_interrupted_choice_of_other_images_is_refused(spec: FitSpec) -> None:
    chosen_by(spec, Made(spec.normal))
    Path(spec.out, "detector.json").unlink()
    Path(spec.normal, "one_more.png").write_bytes(Path(spec.normal, "00.png").read_bytes())
    with pytest.raises(UsageError, match="goes on with the same images and options"):
        chosen_by(spec, Made(spec.normal))


def test_one_held_out_image_is_enough_to_choose_by(spec: FitSpec) -> None:
    made = Made(spec.normal)
    one = made.fits._replace(held_out=lambda candidate: made.held_out(candidate)._replace(frames=_one(made, candidate)))
    told = auto.fit_best(spec, read_source(spec.normal), one)["auto"]
    assert told["judged_on"] == 1
    assert told["kept"] in ("linear", "padim")


def _one(made: Made, candidate: Candidate) -> list[Any]:
    return made.held_out(candidate).frames[:1]


def test_a_candidate_that_fails_is_a_row_with_its_reason(spec: FitSpec) -> None:
    record = chosen_by(spec, Made(spec.normal, "linear"))
    rows = {row["detector"]: row for row in record["auto"]["candidates"]}
    assert rows["linear"]["why"] == "failed: It broke. Mend it."
    assert "found" not in rows["linear"]
    assert (record["kind"], rows["padim"]["why"]) == ("padim", "kept")
    assert "failed: It broke." in auto_text(record["auto"])


def test_one_that_may_have_learned_from_what_judges_it_is_left_out(spec: FitSpec) -> None:
    def other(spec: FitSpec) -> dict[str, Any]:
        record = made.fit(spec)
        if spec.detector == "padim":
            record["data"]["held_out_sha256"] = "1" * 64
        return record

    made = Made(spec.normal)
    record = auto.fit_best(spec, read_source(spec.normal), made.fits._replace(fit=other))
    assert record["kind"] == "linear"
    assert record["auto"]["candidates"][1]["why"].startswith("failed: It held out other images")


def test_where_all_fail_there_is_no_model(spec: FitSpec) -> None:
    with pytest.raises(JobError, match=r"None of the candidates .* linear failed: It broke\..*; padim failed"):
        chosen_by(spec, Made(spec.normal, "linear", "padim"))
    assert read_record(spec.out) is None


def test_what_does_not_fit_into_the_budget_is_not_begun(spec: FitSpec) -> None:
    made = Made(spec.normal)
    record = chosen_by(spec.model_copy(update={"budget": 0.1}), made)
    assert made.done == ["linear"]
    (_, row) = record["auto"]["candidates"]
    assert row["detector"] == "padim"
    assert row["why"].startswith("not tried: ")


def test_a_fusion_that_finds_more_is_kept(spec: FitSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def both(options: Sequence[Option]) -> Option:
        return Option("fused-linear-padim", options[0].judged, 3.0, (0, 1))

    monkeypatch.setattr(auto, "fusion_of", both)
    monkeypatch.setattr(auto, "chosen", lambda options: options[-1])
    record = chosen_by(spec, Made(spec.normal))
    assert record["kind"] == "fused"
    row = record["auto"]["candidates"][-1]
    assert (row["detector"], row["why"], row["model_id"]) == ("fused-linear-padim", "kept", record["model_id"])
    assert {one["uri"] for one in record["fused"]["members"]} == {
        one["folder"] for one in record["auto"]["candidates"][:2]
    }
    assert open_model(spec.out).kind == "fused"
    calibration = open_model(spec.out).calibration.model_dump(mode="json")
    assert "(fused)" in fitted_text(record, calibration, spec.out)


def test_a_fusion_that_cannot_be_made_leaves_the_others(spec: FitSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> dict[str, Any]:
        raise UsageError("Members are alike.", "two", "Name others.")

    def as_good(options: Sequence[Option]) -> Option:
        best = max(options, key=lambda one: one.found)
        return Option("fused-linear-padim", best.judged, 3.0, (0, 1))

    monkeypatch.setattr(auto, "fusion_of", as_good)
    record = auto.fit_best(spec, read_source(spec.normal), Made(spec.normal).fits._replace(fuse=refused))
    assert record["kind"] in ("linear", "padim")
    assert record["auto"]["candidates"][-1]["why"] == "failed: Members are alike. Got: two. Name others."


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"detector": "knn", "budget": "10m"}, "--detector knn --budget 10m"),
        ({"detector": "auto", "epochs": 3}, "--epochs"),
        ({"detector": "auto", "options": {"grid": 8}, "anomalous": "b"}, "--anomalous and --set"),
        ({"detector": "auto", "budget": "soon"}, "A time is a number above 0"),
        ({"detector": "auto", "budget": "-1m"}, "A time is a number above 0"),
        ({"detector": "auto", "budget": "infh"}, "A time is a number above 0"),
    ],
)
def test_what_auto_does_not_take_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        FitSpec(normal="a", out="m", **options)


def test_what_auto_was_asked_can_be_handed_back() -> None:
    asked = FitSpec(detector="auto", normal="a", out="m", budget="90s", preset="paper", size="64x32")
    assert asked.budget == 90
    assert asked.config()["budget"] == "90.0s"
    assert FitSpec(**asked.config()) == asked
    assert FitSpec(detector="auto", normal="a", out="m", budget="1.5h").config()["budget"] == "90m"


def test_a_dry_run_says_what_would_be_tried(spec: FitSpec) -> None:
    words = ["fit", "--detector", "auto", "--normal", spec.normal, "--out", spec.out, "--budget", "30s", "--dry-run"]
    shown = CliRunner().invoke(app, words).output
    assert "24 normal images, 0.5 minutes" in shown
    lines = shown.splitlines()
    assert lines[1].startswith("linear  64x64 px, 0.3 min expected")
    assert lines[2].endswith(": not within the budget")
    assert not Path(spec.out).exists()


def test_the_detectors_say_that_there_is_auto() -> None:
    assert "auto: the best of several" in CliRunner().invoke(app, ["detectors"]).output
