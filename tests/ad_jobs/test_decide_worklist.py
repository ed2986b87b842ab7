"""A work list has what a decision flags, of all models as one list, and what reviewers said of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd
import pytest
import runkit as kit
from decidekit import NORMALS, held_out

from ad_jobs.decide import decide
from ad_jobs.deciding.text import decision_text
from ad_jobs.errors import UsageError
from ad_jobs.export import export
from ad_jobs.results.run import count_table, held_out_copy, part_uris, write_record
from ad_jobs.reviewing.verdicts import add, noted
from cluster import storage


@pytest.mark.parametrize("level", ["image", "study"])
def test_a_work_list_has_what_is_flagged_by_rank_and_no_formulas(tmp_path: Path, level: str) -> None:
    names = ["=1+1.png", "@x.png", "-a.png", 'b, "c".png', "+d.png"]
    rows = [
        kit.scored(i, score=float(5 - i), uri=name if level == "image" else f"/a/{name}/{i}.png", modality="=MR()")
        for i, name in enumerate(names)
    ]
    kit.write_part(tmp_path / "run", [*rows, kit.unscored(5, "truncated")])
    record, body = kit.record(tmp_path / "run", 6), held_out()
    update = {"calibration_id": "c" * 12, "held_out_sha256": hashlib.sha256(body).hexdigest()}
    run = str(tmp_path / "run")
    storage.write_bytes(held_out_copy(run, kit.MODEL), body)
    write_record(run, record.model_copy(update={"models": [record.models[0].model_copy(update=update)]}))
    path = tmp_path / "list.csv"
    found = decide(run=run, top=4, level=level, worklist=str(path))
    assert found["worklist"] == str(path)
    assert f"work list: {path}" in decision_text(found)
    table = pd.read_csv(path)
    assert table["rank"].tolist() == [1, 2, 3, 4]
    assert table["score"].tolist() == [5, 4, 3, 2]
    assert table["modality"].tolist() == ["'=MR()"] * 4
    assert table["verdict"].isna().all()
    assert set(table["rule"]) == {"top 4" + ("" if level == "image" else ", level study")}
    assert set(table["decision"]) == {found["decision_id"]}
    if level == "image":
        assert table["path"].tolist() == ["'=1+1.png", "'@x.png", "'-a.png", 'b, "c".png']
        assert table["why"][0] == "none of 99 held-out normal images is as high"
    else:
        assert table["study"].tolist() == [f"/a/{name}" for name in names[:4]]
        assert {"position", "of_frames", "flagged_frames", "failed_frames"} <= set(table.columns)
        assert table["why"][0] == "none of 33 held-out normal studies is as suspicious"
    path.unlink()
    # Of a decision that is there already, too.
    decide(run=run, top=4, level=level, worklist=str(path))
    assert len(pd.read_csv(path)) == 4
    before = path.read_bytes()
    for other in (path, tmp_path):
        with pytest.raises(UsageError, match=r"Nothing that is there is replaced.*--worklist"):
            decide(run=run, top=2, level=level, worklist=str(other))
    with pytest.raises(UsageError, match=r"stands beside it.*--worklist"):
        decide(run=run, top=2, level=level, worklist=f"{run}/run.json")
    assert path.read_bytes() == before


def two_models(folder: Path) -> str:
    """Six pictures under two models on scales of their own, which rank them otherwise."""
    scores = {kit.MODEL: [9.0, 8.0, 7.0, 0.0, 0.0, 0.0], kit.SECOND: [0.0, 95.0, 0.0, 96.0, 97.0, 0.0]}
    made = [
        kit.scored(i, model_id=model_id, score=score, uri=f"/a/{i}/x.png", flagged=score > 5)
        for model_id, of_model in scores.items()
        for i, score in enumerate(of_model)
    ]
    kit.write_part(folder, made)
    table = count_table(part_uris(str(folder)), objects=6, run_id=kit.RUN_ID, model_ids=list(scores))
    record = kit.record(folder, 6)
    bodies = {kit.MODEL: held_out(), kit.SECOND: held_out(NORMALS + 90)}
    models = []
    for model_id, body in bodies.items():
        storage.write_bytes(held_out_copy(str(folder), model_id), body)
        known = {"model_id": model_id, "kind": "fyd" if model_id == kit.SECOND else "mkd", "calibration_id": "c" * 12}
        models.append(record.models[0].model_copy(update=known | {"held_out_sha256": hashlib.sha256(body).hexdigest()}))
    write_record(str(folder), record.model_copy(update={"models": models, "counts": table.counts}))
    return str(folder)


@pytest.mark.parametrize("suffix", ["csv", "xlsx"])
def test_a_work_list_of_two_models_is_one_list_with_what_reviewers_said(tmp_path: Path, suffix: str) -> None:
    run, path = two_models(tmp_path / "run"), tmp_path / f"list.{suffix}"
    seen = {"object_id": 4, "frame": 0, "content_sha256": None, "uri": "/a/4/x.png", "flagged": True}
    add(run, [noted(seen, "Ada", "accepted"), noted(seen, "Bob", "rejected")])
    decide(run=run, top=3, worklist=str(path))
    table = pd.read_csv(path) if suffix == "csv" else pd.read_excel(path)
    assert table["rank"].tolist() == [1, 2, 3, 4, 5]
    # Each once: both models' first, of which the lower object is first; then theirs in turn.
    assert table["path"].tolist() == [f"/a/{i}/x.png" for i in (0, 4, 1, 3, 2)]
    assert table["why"][2] == (
        "mkd: none of 99 held-out normal images is as high; fyd: none of 99 held-out normal images is as high"
    )
    assert table["score"].tolist() == [9, 97, 8, 96, 7]
    assert table["verdict"].fillna("").tolist() == ["", "accepted (Ada), rejected (Bob)", "", "", ""]
    exported = tmp_path / f"rows.{suffix}"
    export(run=run, out=str(exported), format=suffix)
    rows = pd.read_csv(exported) if suffix == "csv" else pd.read_excel(exported)
    assert rows["object_id"].tolist() == [0, 4, 1, 1, 3, 2]
    assert rows["rank"].tolist() == [1, 1, 2, 3, 2, 3]
