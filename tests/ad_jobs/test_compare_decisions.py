"""compare: two decisions side by side, of one run or of two, or one beside what the run itself flagged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pagekit import Page
from runkit import MODEL
from runskit import image, made

from ad_jobs.cli import show
from ad_jobs.compare import compare
from ad_jobs.decide import decide
from ad_jobs.errors import UsageError
from ad_jobs.results.run import held_out_copy, read_record, write_record
from ad_jobs.scoring.held_out import Scored, to_parquet

SCORES = np.random.default_rng(0).permutation(60)


def run(folder: Path, day: int) -> str:
    uri = made(
        folder, day, [image(f"{i // 6}/{i}.dcm", score=float(SCORES[i]), flagged=SCORES[i] > 49) for i in range(60)]
    )
    body = to_parquet(Scored(f"{i}", 0, f"{i // 3}", False, float(i % 55)) for i in range(99))
    Path(held_out_copy(uri, MODEL)).parent.mkdir()
    Path(held_out_copy(uri, MODEL)).write_bytes(body)
    record = read_record(uri)
    update = {"held_out_sha256": hashlib.sha256(body).hexdigest()}
    write_record(uri, record.model_copy(update={"models": [record.models[0].model_copy(update=update)]}))
    return uri


def test_two_decisions_of_a_run_differ_in_flags_alone(tmp_path: Path) -> None:
    uri = run(tmp_path / "run", 1)
    few, many = (decide(run=uri, top=top)["decision_id"] for top in (5, 12))
    found = compare(uri, decision=(few, many))
    (model,) = found["models"]
    assert [model[f"flagged_{name}"] for name in ("both", "only_a", "only_b", "neither")] == [5, 0, 7, 48]
    assert (model["threshold_a"], model["threshold_b"], model["scores_differ"]) == (None, None, 0)
    assert found["settings"] == [{"name": "flagged by", "a": f"{few}, --top 5", "b": f"{many}, --top 12"}]
    assert found["page"] == f"{uri}/compared/{few}-{many}/index.html"
    table = pq.read_table(found["differences"]).to_pandas()
    assert set(table["differs"]) == {"flagged"}
    assert sorted(table["score_b"]) == list(range(48, 55))
    assert [row["score_b"] for row in model["flags_changed"]] == list(range(54, 47, -1))
    page = Page(Path(found["page"]).read_text(encoding="utf-8"))
    assert page.open == []
    assert "comparison of two decisions" in page.text
    assert f"flagged by decision {few}" in page.text
    assert "7 rows differ" in show.comparison_text(found)
    assert "thresholds none and none" in show.comparison_text(found)


def test_a_decision_beside_what_the_run_flagged(tmp_path: Path) -> None:
    uri = run(tmp_path / "run", 1)
    of_studies = decide(run=uri, top=2, level="study")["decision_id"]
    found = compare(uri, decision=of_studies)
    (model,) = found["models"]
    # Of the ten highest frames those in the two studies, all of which are flagged.
    assert model["flagged_both"] + model["flagged_only_a"] == 10
    assert model["flagged_both"] + model["flagged_only_b"] == 12
    assert found["settings"][0]["a"] == "the run's threshold"
    assert (found["a"]["decision"], found["b"]["decision"]) == (None, of_studies)


def test_decisions_of_two_runs(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", 1), run(tmp_path / "b", 2)
    ids = decide(run=a, top=5)["decision_id"], decide(run=b, max_fpr=0.1)["decision_id"]
    found = compare(a, b, decision=ids)
    assert found["models"][0]["flagged_both"] == 5
    assert found["models"][0]["threshold_b"] is not None
    with pytest.raises(UsageError, match="a decision of each"):
        compare(a, b, decision=ids[:1])
    with pytest.raises(UsageError, match="Two runs are compared, or decisions"):
        compare(a)
    with pytest.raises(UsageError, match="one that the run has"):
        compare(a, decision=(ids[1], ids[0]))
