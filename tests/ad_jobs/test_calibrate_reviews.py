"""calibrate --from-reviews: reviewed images in their proportion, so that a rate stays what it says."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import runkit as kit
import scankit

from ad_jobs.archive.identifiers import Identifiers
from ad_jobs.calibrate import calibrate
from ad_jobs.errors import UsageError
from ad_jobs.evaluation.reviewed_scores import reviewed_scores
from ad_jobs.index import index
from ad_jobs.results.run import ManifestRef, RunRecord, read_record, write_record
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.reviewing.verdicts import add, noted
from ad_jobs.scoring.model_store import read_calibration, read_fitted
from ad_jobs.scoring.thresholds import threshold_for_fpr

# Of a run 2 % are abnormal; what scores above FLAGGED was shown.
NORMAL, ABNORMAL, FLAGGED = 2940, 60, 2.0
HASHED = Identifiers("hashed", b"a key")


def make_run(folder: Path, seed: int, *, skip: int = 0, model_id: str = kit.MODEL) -> tuple[str, np.ndarray]:
    """A run, and its scores; all that it flagged was reviewed, and rightly, but the first `skip` of these."""
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(size=NORMAL), rng.normal(4, size=ABNORMAL)]).astype(np.float32)
    rows = [
        kit.scored(
            i,
            model_id=model_id,
            score=float(score),
            flagged=bool(score > FLAGGED),
            uri=f"/a/{i // 5}/{i}.png",
            content_sha256=f"{i:064x}",
            manufacturer="Acme",
        )
        for i, score in enumerate(scores)
    ]
    kit.write_part(folder, rows)
    record = kit.record(folder, len(rows)) if model_id == kit.MODEL else of_model(folder, len(rows), model_id)
    write_record(str(folder), record)
    shown = [row for row in rows if row["flagged"]][skip:]
    said = [noted(row, "ann", "accepted" if row["object_id"] >= NORMAL else "rejected") for row in shown]
    add(str(folder), said)
    return str(folder), scores


def of_model(folder: Path, objects: int, model_id: str) -> RunRecord:
    """The record of a run by another model than the kit's."""
    counted = kit.run_module.count_table(
        kit.run_module.part_uris(str(folder)), objects=objects, run_id=kit.RUN_ID, model_ids=[model_id]
    )
    manifest = kit.run_module.ManifestRef(uri="/m", digest="00", objects=objects)
    model = kit.run_module.ModelRef(
        model_id=model_id,
        uri="/model",
        kind="mkd",
        threshold=FLAGGED,
        calibration_sha256="00",
        weights_sha256="00",
        policy={},
        heatmap_low=0.0,
        heatmap_high=1.0,
    )
    return RunRecord(
        run_id=kit.RUN_ID,
        started_at=kit.MOMENT,
        ended_at=kit.MOMENT,
        source="/a",
        manifest=manifest,
        models=[model],
        config={},
        versions={},
        machine={},
        counts=counted.counts,
        parts=kit.run_module.describe_parts(str(folder)),
        heatmap_parts=[],
    )


def test_the_rate_is_kept_over_many_runs_and_rejected_ones_alone_would_not(tmp_path: Path) -> None:
    fresh = np.random.default_rng(99).normal(size=200_000).astype(np.float32)
    kept, added, alone = [], [], []
    for seed in range(8):
        run, scores = make_run(tmp_path / f"{seed}", seed)
        found = reviewed_scores(ScoreTable(run, read_record(run)), kit.MODEL)
        normal = np.array([one.score for one in found if not one.anomalous], np.float32)
        kept.append((fresh > threshold_for_fpr(normal, 0.01).threshold).mean())
        rejected = scores[:NORMAL][scores[:NORMAL] > FLAGGED]
        few = np.random.default_rng(seed + 50).normal(size=300).astype(np.float32)
        both = np.concatenate([few, rejected])
        added.append((fresh > threshold_for_fpr(both, 0.01).threshold).mean())
        alone.append((fresh > threshold_for_fpr(rejected, 0.01).threshold).mean())
    assert np.mean(kept) == pytest.approx(0.01, rel=0.15), "the rate that was asked for"
    assert np.mean(added) < 0.005, "too high a threshold"
    assert np.mean(alone) < 0.001


def test_what_was_missed_below_hardly_moves_the_rate(tmp_path: Path) -> None:
    # All abnormal ones that score below what was shown count as normal: h is at most 2 %.
    run, scores = make_run(tmp_path / "run", 3)
    found = reviewed_scores(ScoreTable(run, read_record(run)), kit.MODEL)
    missed = int((scores[NORMAL:] <= FLAGGED).sum())
    assert sum(not one.anomalous for one in found) == NORMAL + missed
    assert sum(one.anomalous for one in found) == ABNORMAL - missed


def test_unseen_flagged_and_disputed_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, scores = make_run(tmp_path / "run", 4, skip=7)
    row = {"object_id": NORMAL, "frame": 0, "content_sha256": f"{NORMAL:064x}", "uri": "/a", "flagged": True}
    add(run, [noted(row, "bob", "rejected"), noted(row, "cid", "accepted")])
    with caplog.at_level(logging.WARNING, "retroscan.calibrate"):
        found = reviewed_scores(ScoreTable(run, read_record(run)), kit.MODEL)
    assert "7 flagged frames of the run without a verdict counted as normal" in caplog.text
    assert len(found) == len(scores) - 1
    # Whole folders of five are drawn where there are too many.
    some = reviewed_scores(ScoreTable(run, read_record(run)), kit.MODEL, most_rows=600)
    assert 400 < sum(not one.anomalous for one in some) < 800
    assert sum(one.anomalous for one in some) == sum(one.anomalous for one in found)


def test_sites_of_a_reviewed_run_are_those_of_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    for number in range(4):
        data = scankit.dicom_of(number, InstitutionName=f"Clinic {number // 2}")
        (tmp_path / "archive" / f"{number}.dcm").write_bytes(data)
    (tmp_path / "key").write_bytes(HASHED.key)
    keyed: dict[str, dict[str, Any]] = {"plain": {}, "hashed": {"identifiers_key": tmp_path / "key"}, "none": {}}
    for mode, key in keyed.items():
        info = index(str(tmp_path / "archive"), str(tmp_path / mode), headers=True, identifiers=mode, **key)
        rows = [kit.scored(i, score=0.1 * i, content_sha256=f"{i:064x}") for i in range(4)]
        kit.write_part(tmp_path / f"of {mode}", rows)
        record = kit.record(tmp_path / f"of {mode}", 4)
        manifest = ManifestRef(uri=info.uri, digest=info.digest, objects=4)
        write_record(str(tmp_path / f"of {mode}"), record.model_copy(update={"manifest": manifest}))
        add(str(tmp_path / f"of {mode}"), [noted({**rows[3], "frame": 0}, "ann", "accepted")])

    def sites(mode: str, identifiers: Identifiers) -> list[str | None]:
        run = str(tmp_path / f"of {mode}")
        return [
            one.header["site"] for one in reviewed_scores(ScoreTable(run, read_record(run)), kit.MODEL, identifiers)
        ]

    names = ["Clinic 0", "Clinic 0", "Clinic 1", "Clinic 1"]
    assert sites("plain", Identifiers("plain")) == names
    hashed = [HASHED.uid(name) for name in names]
    assert sites("plain", HASHED) == sites("hashed", HASHED) == hashed
    assert sites("hashed", Identifiers("none")) == [None] * 4
    for identifiers in (Identifiers("plain"), Identifiers("hashed", b"another key")):
        with pytest.raises(UsageError, match=r"by its own key.*indexed with --identifiers hashed"):
            sites("hashed", identifiers)
    with pytest.raises(UsageError, match=r"hidden, gone, or has no site"):
        sites("none", HASHED)


def test_a_calibration_from_a_reviewed_run_is_kept_with_its_scores(tmp_path: Path) -> None:
    model = scankit.make_model(tmp_path / "model")
    before = read_calibration(model, read_fitted(model).calibrated_as)
    run, scores = make_run(tmp_path / "run", 5, model_id=read_fitted(model).model_id)
    found = calibrate(model=model, from_reviews=run, max_fpr=0.01)
    assert found.heatmap_low == before.heatmap_low
    assert found.anchor == (found.threshold if before.anchor == before.threshold else before.anchor)
    assert found.source == f"reviews of {run}"
    assert found.n_normal + found.n_anomalous == len(scores)
    assert found.threshold == pytest.approx(np.quantile(scores[:NORMAL], 0.99), abs=0.15)
    rows = pq.read_table(f"{model}/calibrations/{found.id}.parquet").to_pandas()
    assert set(rows["manufacturer"]) == {"Acme"}
    assert rows["group"].nunique() == len(scores) / 5
    missing_none = calibrate(model=model, from_reviews=run, max_fnr=0, margin=0.0)
    assert missing_none.threshold == pytest.approx(scores[NORMAL:][scores[NORMAL:] > FLAGGED].min(), abs=1e-3)
    with pytest.raises(UsageError, match="by this very model"):
        calibrate(model=model, from_reviews=make_run(tmp_path / "other", 6)[0], max_fpr=0.01)
    with pytest.raises(UsageError, match="or from a reviewed run"):
        calibrate(model=model, max_fpr=0.01)
