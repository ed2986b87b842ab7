"""A decision flags what its rule says, beside the scores; it is named by what it follows from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import runkit as kit
from decidekit import ABNORMAL, NORMALS, SCORES, held_out, make_run
from s3server import S3Server

from ad_jobs.cli.show import shown_text
from ad_jobs.decide import decide
from ad_jobs.deciding.table import group_of
from ad_jobs.deciding.text import decision_text
from ad_jobs.errors import UsageError
from ad_jobs.evaluation.evaluation_file import read_evaluation
from ad_jobs.results.run import RunRecord, held_out_copy, write_record
from ad_jobs.results.seal import digest_holds
from ad_jobs.reviewing.verdicts import add, noted
from ad_jobs.schema import SCORES as SCHEMA
from ad_jobs.scoring.calibration import Calibrated, Calibration, kept_calibrations
from ad_jobs.scoring.model_store import write_calibration
from ad_jobs.scoring.thresholds import threshold_for_fpr
from ad_jobs.show import show
from cluster import storage


@pytest.fixture
def run(tmp_path: Path) -> str:
    return make_run(tmp_path / "run")


def rows(run: str, decision: dict[str, Any]) -> pd.DataFrame:
    """The decision's table, in the order of the run's."""
    path = f"{run}/decisions/{decision['decision_id']}.parquet"
    table = pd.read_parquet(path)
    assert table["rank"].tolist() == list(range(1, 201))
    assert table["score"].is_monotonic_decreasing
    return table.sort_values("object_id")


def p_of(scores: np.ndarray) -> np.ndarray:
    return np.array([(1 + (score <= NORMALS).sum()) / 100 for score in scores])


def test_a_rate_of_false_positives_flags_by_p(run: str) -> None:
    found = decide(run=run, max_fpr=0.05)
    table = rows(run, found)
    np.testing.assert_allclose(table["p"], p_of(SCORES))
    np.testing.assert_array_equal(table["flagged"], p_of(SCORES) <= 0.05)
    (model,) = found["models"]
    assert model["flagged"] == table["flagged"].sum() > 15
    assert (table["score"] > model["threshold"]).tolist() == table["flagged"].tolist()
    assert (model["n_normal"], model["n_groups"], model["scored"], model["smallest_p"]) == (99, 33, 200, 0.01)
    assert found["run_id"] == kit.RUN_ID
    assert digest_holds(found)


def test_a_rate_of_false_discoveries_flags_by_q(run: str) -> None:
    table = rows(run, decide(run=run, fdr=0.2))
    ordered = np.sort(p_of(SCORES))
    last = max(k for k in range(1, 201) if ordered[k - 1] <= k / 200 * 0.2)
    np.testing.assert_array_equal(table["flagged"], p_of(SCORES) <= ordered[last - 1])
    np.testing.assert_array_equal(table["flagged"], table["q"] <= 0.2)


def test_a_rate_of_misses_flags_by_the_held_out_abnormal(run: str) -> None:
    assert rows(run, decide(run=run, max_fnr=0))["flagged"].tolist() == (SCORES >= 1.5).tolist()
    assert rows(run, decide(run=run, max_fnr=0.25))["flagged"].tolist() == (SCORES >= 2.5).tolist()


def test_the_highest_scores_are_flagged_by_rank(run: str) -> None:
    found = decide(run=run, top=7)
    table = rows(run, found)
    assert sorted(table.loc[table["flagged"], "score"]) == sorted(SCORES)[-7:]
    assert (found["models"][0]["flagged"], found["models"][0]["threshold"]) == (7, None)


def test_rows_are_grouped_by_study_or_folder(run: str) -> None:
    group = rows(run, decide(run=run, top=1)).set_index("object_id")["group"]
    assert (group[0], group[1], group[57]) == ("1.2.3", "/a/0", "/a/5")


def test_the_same_decision_is_the_one_that_is_there(run: str) -> None:
    first = decide(run=run, fdr=0.1)
    path = Path(run, "decisions", f"{first['decision_id']}.parquet")
    written = path.stat().st_mtime_ns
    assert decide(run=run, fdr=0.1) == first
    assert path.stat().st_mtime_ns == written
    assert hashlib.sha256(path.read_bytes()).hexdigest() == first["sha256"]
    assert decide(run=run, fdr=0.2)["decision_id"] != first["decision_id"]
    assert len(list(Path(run, "decisions").iterdir())) == 4


def test_scores_stay_as_they_are(run: str) -> None:
    before = {path: path.read_bytes() for path in Path(run).rglob("*") if path.is_file()}
    decide(run=run, max_fpr=0.1)
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_and_its_decisions_in_s3(s3: S3Server, tmp_path: Path) -> None:
    uri = make_run(tmp_path / "run", s3.uri("decide/run"))
    found = decide(run=uri, fdr=0.2)
    assert json.loads(storage.read_bytes(f"{uri}/decisions/{found['decision_id']}.json")) == found
    there = storage.read_bytes(f"{uri}/decisions/{found['decision_id']}.parquet")
    assert hashlib.sha256(there).hexdigest() == found["sha256"]
    local = decide(run=make_run(tmp_path / "again"), fdr=0.2)
    assert local["decision_id"] == found["decision_id"]
    assert local["models"] == found["models"]


def test_studies_are_decided_as_a_whole(run: str) -> None:
    found = decide(run=run, max_fpr=0.15, level="study")
    table = pd.read_parquet(f"{run}/decisions/{found['decision_id']}.parquet")
    # Twenty folders of ten, of which one row has a study of its own.
    assert sorted(table["frames"]) == [1, 9, *[10] * 19]
    (model,) = found["models"]
    assert (model["scored"], model["n_normal"], model["threshold"]) == (21, 33, None)
    assert model["flagged"] == table["flagged"].sum() > 5
    assert (table["flagged"] == (table["p"] <= 0.15)).all()
    assert "21 studies flagged" in decision_text(found)
    assert "against 33 held-out normal studies" in decision_text(found)
    with pytest.raises(UsageError, match="decided by normal ones alone"):
        decide(run=run, max_fnr=0, level="study")
    assert decide(run=run, max_fpr=0.15)["decision_id"] != found["decision_id"]


def test_studies_larger_than_any_score_could_flag_are_told(run: str) -> None:
    # 99 held-out frames: of a study of ten the highest of all frames has p = 0.1 at least.
    found = decide(run=run, max_fpr=0.05, level="study")
    table = pd.read_parquet(f"{run}/decisions/{found['decision_id']}.parquet")
    (model,) = found["models"]
    beyond = model["beyond_reach"]
    assert (beyond["count"], beyond["of"], beyond["frames"], beyond["largest"]) == (20, 21, 9, 10)
    assert 0.05 < beyond["smallest_p"] <= table["p"].min()
    assert beyond["normals"] == 200
    assert "BEYOND REACH: 20 of 21 studies have 9 frames or more, and --max-fpr 0.05 cannot" in decision_text(found)
    assert "Calibrate with 200 normal frames or more" in decision_text(found)
    for asked in ({"max_fpr": 0.15}, {"top": 3}):
        (model,) = decide(run=run, level="study", **asked)["models"]
        assert model["beyond_reach"] is None
    assert decide(run=run, fdr=0.05, level="study")["models"][0]["beyond_reach"] == beyond
    (model,) = decide(run=run, max_fpr=0.05)["models"]
    assert model["beyond_reach"] is None


def test_what_cannot_be_promised_is_refused(run: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"1/\(n \+ 1\).*--max-fpr 0.001 with n = 99.*999 normals.*--max-fpr 0.01"):
        decide(run=run, max_fpr=0.001)
    normals_alone = make_run(tmp_path / "normals", scores=held_out(abnormal=np.zeros(0)))
    with pytest.raises(UsageError, match="judged on held-out anomalous images"):
        decide(run=normals_alone, max_fnr=0)


@pytest.mark.parametrize("asked", [{}, {"max_fpr": 0.1, "top": 3}])
def test_a_decision_follows_from_one_rule(run: str, asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="follows from one rule"):
        decide(run=run, **asked)


def test_scores_that_are_not_those_of_the_calibration_are_refused(run: str) -> None:
    path = Path(held_out_copy(run, kit.MODEL))
    path.write_bytes(held_out(NORMALS + 1))
    with pytest.raises(UsageError, match="another digest than its calibration tells"):
        decide(run=run, top=1)
    path.unlink()
    with pytest.raises(UsageError, match="no such file"):
        decide(run=run, top=1)


def test_a_decision_that_is_damaged_is_refused(run: str) -> None:
    found = decide(run=run, top=3)
    record, table = (Path(run, "decisions", f"{found['decision_id']}.{kind}") for kind in ("json", "parquet"))
    whole, rows = record.read_bytes(), table.read_bytes()
    for body in (b"", b"[]", whole[:100], whole.replace(b'"top": 3', b'"top": 4')):
        record.write_bytes(body)
        with pytest.raises(UsageError, match="its record was changed"):
            decide(run=run, top=3)
    record.write_bytes(whole)
    table.write_bytes(rows[:-20])
    with pytest.raises(UsageError, match="its table is gone, or was changed"):
        decide(run=run, top=3)
    table.unlink()
    with pytest.raises(UsageError, match="its table is gone, or was changed"):
        decide(run=run, top=3)
    # What a kill leaves, the table without its record, is written again.
    record.unlink()
    table.write_bytes(b"half")
    assert decide(run=run, top=3)["sha256"] == found["sha256"]
    assert table.read_bytes() == rows


def test_show_lists_the_decisions_of_a_run(run: str) -> None:
    first, second = decide(run=run, fdr=0.2), decide(run=run, top=2, level="study")
    found = show(folder=run)
    assert sorted(found["run"]["decisions"], key=str) == sorted([first, second], key=str)
    text = shown_text(found).splitlines()
    flagged = first["models"][0]["flagged"]
    assert f"  decision     {first['decision_id']}, --fdr 0.2: {flagged} of 200 flagged" in text
    assert f"  decision     {second['decision_id']}, --top 2 --level study: 2 of 21 flagged" in text


def test_what_is_damaged_is_shown_by_name_beside_what_is_not(run: str, caplog: pytest.LogCaptureFixture) -> None:
    whole, broken = decide(run=run, fdr=0.2), decide(run=run, top=2)
    seen = {"object_id": 4, "frame": 0, "content_sha256": None, "uri": "/a/4/x.png", "flagged": True}
    add(run, [noted(seen, "Ada", "accepted")])
    Path(run, "reviews", "20250101T000000-half.parquet").write_bytes(b"half")
    Path(run, "decisions", f"{broken['decision_id']}.json").write_bytes(b"{")
    found = show(folder=run)
    assert found["run"]["decisions"] == [whole]
    assert found["run"]["reviews"]["verdicts"] == 1
    decision, verdicts = found["run"]["damaged"]
    assert f"{broken['decision_id']}.json: its record was changed. Remove it, and decide again." in decision
    assert "20250101T000000-half.parquet cannot be read as verdicts" in verdicts
    assert f"  DAMAGED      {decision}" in shown_text(found).splitlines()
    Path(run, "evaluation.json").write_bytes(b"half")
    assert read_evaluation(run, kit.RUN_ID) == (None, True)
    assert (
        "evaluation.json is damaged or about another run, and is left out: run retroscan evaluate again" in caplog.text
    )


def test_held_out_normals_are_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"held-out normals.*without one"):
        decide(run=make_run(tmp_path / "run", scores=held_out(NORMALS[:0])), top=1)


def test_a_container_or_a_file_that_is_one_is_no_folder() -> None:
    uris = ["/a/a.zip!/b.png", "/a/a.zip!/c/b.png", "/a/c.png.gz!/c.png", "hmac:00/ff", "/x.png"]
    rows = [kit.scored(i, uri=uri, study_uid=None) for i, uri in enumerate(uris)]
    found = group_of(pa.RecordBatch.from_pylist(rows, SCHEMA))
    assert found.to_pylist() == ["/a/a.zip", "/a/a.zip!/c", "/a", None, "/"]


def test_the_text_says_what_may_be_expected(run: str, tmp_path: Path) -> None:
    text = decision_text(decide(run=run, fdr=0.2))
    assert "at most 20.00% of them, " in text
    assert "against 99 held-out normal images of 33 groups" in text
    assert "1 of the rows are held-out images" in text
    assert "IN DOUBT" not in text
    other = decision_text(decide(run=make_run(tmp_path / "other", scores=held_out(NORMALS - 3)), max_fpr=0.01))
    assert "IN DOUBT: only " in other
    missing = decision_text(decide(run=run, max_fnr=0.25))
    assert "of the 4 held-out anomalous images 1 are missed (95 % interval 0.6% to 80.6%)" in missing
    assert "no rate is promised" in decision_text(decide(run=run, top=1000000))
    assert "--top 1000000" in decision_text(decide(run=run, top=1000000))


def test_another_calibration_of_the_model_decides_otherwise(run: str, tmp_path: Path) -> None:
    model = str(tmp_path / "model")
    first, later = (_calibrated(NORMALS), _calibrated(NORMALS + 1))
    for one in (first, later):
        write_calibration(model, one)
    record = RunRecord.model_validate_json(Path(run, "run.json").read_bytes())
    moved = record.models[0].model_copy(update={"uri": model})
    write_record(run, record.model_copy(update={"models": [moved]}))
    assert [one.id for one in kept_calibrations(model).calibrations] == [first.calibration.id, later.calibration.id]
    current = decide(run=run, max_fpr=0.05, calibration="current")
    by_name = decide(run=run, max_fpr=0.05, calibration=later.calibration.id)
    assert current == by_name
    assert current["models"][0]["calibration_id"] == later.calibration.id
    assert current["models"][0]["flagged"] < decide(run=run, max_fpr=0.05)["models"][0]["flagged"]
    with pytest.raises(UsageError, match=r"which none has.*They have " + first.calibration.id):
        decide(run=run, max_fpr=0.05, calibration="0" * 12)
    # Of two decisions by one rule is told what they differ by.
    told = shown_text(show(folder=run)).splitlines()
    assert [line.partition(" flagged by calibration ")[2] for line in told if "--max-fpr 0.05" in line].count("") == 1
    assert any(line.endswith(f" flagged by calibration {later.calibration.id}") for line in told)
    # One that is damaged is told by its name, and hides no other.
    path = Path(model, "calibrations", f"{later.calibration.id}.json")
    body = path.read_bytes()
    path.write_bytes(body[:50])
    kept = kept_calibrations(model)
    assert ([one.id for one in kept.calibrations], list(kept.damaged)) == (
        [first.calibration.id],
        [later.calibration.id],
    )
    assert decide(run=run, max_fpr=0.05, calibration=first.calibration.id)["level"] == "image"
    with pytest.raises(UsageError, match=rf"{later.calibration.id}.json.*Restore the file, or remove it"):
        decide(run=run, max_fpr=0.05, calibration=later.calibration.id)
    path.write_bytes(body)
    # Set again, the first is the current one, whenever it was set before.
    write_calibration(model, first)
    again = decide(run=run, max_fpr=0.05, calibration="current")
    assert again["models"][0]["calibration_id"] == first.calibration.id
    # Another model by now: its scores say nothing of the run's.
    other = first.calibration.model_copy(update={"model_id": "f" * 12})
    write_calibration(model, Calibrated(other, first.held_out))
    with pytest.raises(UsageError, match=r"holds for one model"):
        decide(run=run, max_fpr=0.05, calibration="current")
    with pytest.raises(UsageError, match=r"which none has"):
        decide(run=run, max_fpr=0.05, calibration=other.id)


def _calibrated(normals: np.ndarray) -> Calibrated:
    body = held_out(normals)
    threshold = threshold_for_fpr(normals, 0.01)
    calibration = Calibration(
        model_id=kit.MODEL,
        n_normal=len(normals),
        n_anomalous=len(ABNORMAL),
        heatmap_low=0,
        heatmap_high=1,
        source="test",
        set_at=f"2026-01-01T00:00:0{int(normals.mean() > 0.5)}+00:00",
        held_out_sha256=hashlib.sha256(body).hexdigest(),
        **threshold.model_dump(),
    )
    return Calibrated(calibration, body)


def test_a_run_has_a_table_of_its_studies_whatever_is_flagged(run: str) -> None:
    first = decide(run=run, max_fpr=0.15, level="study")
    path = Path(run, "studies.parquet")
    table, decided = pd.read_parquet(path), pd.read_parquet(f"{run}/decisions/{first['decision_id']}.parquet")
    assert table["rank"].tolist() == list(range(1, 22))
    pd.testing.assert_frame_equal(table, decided[table.columns])
    assert not Path(run, "series.parquet").exists()
    path.write_bytes(b"half")
    decide(run=run, top=3, level="study")
    pd.testing.assert_frame_equal(pd.read_parquet(path), table)
