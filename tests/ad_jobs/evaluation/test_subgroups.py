"""Subgroups: counts, exact intervals and AUROC of each part, and nothing of a few images by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import fake_run
import headerkit
import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import runkit
from pagekit import page_of
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from ad_jobs.archive.manifest_record import manifest_info
from ad_jobs.evaluate import evaluate
from ad_jobs.evaluation.labels import read_labels
from ad_jobs.evaluation.subgroups import attributes, subgroups
from ad_jobs.index import index
from ad_jobs.results.run import ManifestRef
from ad_jobs.results.score_table import ScoreTable


def judged(values: list[str | None], *, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Labelled images with a score each, every third anomalous; and the modality of each."""
    rng = np.random.default_rng(seed)
    count = len(values)
    anomalous = np.arange(count) % 3 == 0
    scores = rng.normal(size=count) + 1.5 * anomalous
    uris = [f"/a/{place}" for place in range(count)]
    frame = pd.DataFrame(
        {"uri": uris, "anomalous": anomalous, "status": "scored", "score": scores, "flagged": scores > 1}
    )
    return frame, pd.DataFrame({"modality": values}, index=pd.Index(uris, name="uri"))


def told(frame: pd.DataFrame, by: pd.DataFrame, bootstrap: int = 50) -> list[dict[str, object]]:
    return subgroups(frame, by, frame["uri"].tolist(), seed=0, bootstrap=bootstrap)


def test_each_group_has_its_counts_exact_intervals_and_auroc() -> None:
    frame, by = judged(["MR"] * 60 + ["CT"] * 30)
    ct, mr = told(frame, by)
    assert [(row["by"], row["value"], row["merged"]) for row in (ct, mr)] == [
        ("modality", "CT", None),
        ("modality", "MR", None),
    ]
    part = frame[:60]
    sick = part[part["anomalous"]]
    found = int(sick["flagged"].sum())
    assert (mr["n_normal"], mr["n_anomalous"], mr["found"]) == (40, 20, found)
    interval = binomtest(found, 20).proportion_ci(0.95, "exact")
    assert mr["sensitivity"] == pytest.approx({"value": found / 20, "low": interval.low, "high": interval.high})
    well = part[~part["anomalous"]]
    assert mr["false_alarms"] == int(well["flagged"].sum())
    assert mr["specificity"]["value"] == pytest.approx((~well["flagged"]).mean())
    auroc = mr["image_auroc"]
    assert auroc["value"] == pytest.approx(roc_auc_score(part["anomalous"], part["score"]))
    assert auroc["low"] < auroc["value"] < auroc["high"]


def test_few_images_are_taken_together_and_hidden_where_they_stay_few() -> None:
    frame, by = judged(["MR"] * 20 + ["CT"] * 4 + ["US"] * 3 + [None] * 10)
    mr, others = told(frame, by)
    assert (mr["value"], mr["n_normal"] + mr["n_anomalous"]) == ("MR", 20)
    assert (others["value"], others["merged"]) == (None, 2)
    assert others["n_normal"] + others["n_anomalous"] == 7
    # Of three anomalous ones there is no AUROC.
    assert others["image_auroc"]["value"] is None
    frame, by = judged(["MR"] * 20 + ["CT"] * 4)
    _, others = told(frame, by)
    assert (others["merged"], others["n_normal"], others["found"]) == (1, None, None)
    assert others["sensitivity"] == {"value": None, "low": None, "high": None}


def test_what_was_not_scored_is_in_no_group() -> None:
    frame, by = judged(["MR"] * 20)
    (row,) = told(frame.assign(status=["failed"] * 5 + ["scored"] * 15), by)
    assert row["n_normal"] + row["n_anomalous"] == 15
    assert told(frame.assign(status="failed"), by) == []


def test_an_evaluation_has_them_and_the_report_shows_them(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path, normal=20, anomalous=10)
    part = Path(fake.uri) / "scores" / "part-00000.parquet"
    table = pq.read_table(part)
    even = [number % 2 == 0 for number in table["object_id"].to_pylist()]
    modality = pc.if_else(even, "MR", "CT")
    pq.write_table(table.set_column(table.schema.get_field_index("modality"), "modality", modality), part)
    fake_run.close(fake.uri, [fake_run.MODEL], fake_run.PixelPolicy(channels=1, height_px=48, width_px=64), 0.55, 30)
    evaluation = evaluate(fake.uri, str(fake.labels), bootstrap=20)
    assert json.loads(Path(fake.uri, "evaluation.json").read_text()) == evaluation
    rows = {row["value"]: row for row in evaluation["subgroups"] if row["by"] == "modality"}
    assert {name: (row["n_normal"], row["n_anomalous"]) for name, row in rows.items()} == {"MR": (10, 5), "CT": (10, 5)}
    assert sum(row["found"] for row in rows.values()) == evaluation["at_threshold"]["true_positive"]
    assert "By subgroup" in page_of(fake).text


def test_age_bands_and_sex_come_from_the_runs_manifest(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    for number in range(6):
        path = archive / f"{number}.dcm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(headerkit.dicom("MR" if number % 2 else "CT"))
    index(source=str(archive), out=str(tmp_path / "manifest"), headers=True, demographics=True)
    info = manifest_info(str(tmp_path / "manifest"))
    run = tmp_path / "run"
    runkit.write_part(run, [runkit.scored(number, uri=str(archive / f"{number}.dcm")) for number in range(6)])
    record = runkit.record(run, 6)
    record = record.model_copy(update={"manifest": ManifestRef(uri=info.uri, digest=info.digest, objects=6)})
    labels = tmp_path / "labels.csv"
    labels.write_text("image,anomalous\n" + "".join(f"archive/{number}.dcm,0\n" for number in range(5)))
    found = attributes(ScoreTable(str(run), record), read_labels(str(labels)))
    assert len(found) == 5
    assert found["age_band"].tolist() == ["45-49"] * 5
    assert found["sex"].tolist() == ["F"] * 5
    assert found["site"].tolist() == ["Hidden Clinic"] * 5
    # Where labels name sites, they name all of them.
    (tmp_path / "sites.csv").write_text("image,anomalous,site\narchive/0.dcm,0,north\narchive/1.dcm,0,\n")
    found = attributes(ScoreTable(str(run), record), read_labels(str(tmp_path / "sites.csv")))
    assert found["site"].tolist() == ["north", np.nan]
    # Another manifest lies there by now: nothing is told by it.
    other = record.model_copy(update={"manifest": ManifestRef(uri=info.uri, digest="00", objects=6)})
    found = attributes(ScoreTable(str(run), other), read_labels(str(labels)))
    assert list(found.columns) == ["modality", "manufacturer"]
