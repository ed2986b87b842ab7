"""Studies: how suspicious one is takes its number of frames into account, and what is promised holds for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runkit as kit

from ad_jobs.deciding.cells import By, Cell
from ad_jobs.deciding.gathering import gather
from ad_jobs.deciding.judges import HeldOutScores, Judges
from ad_jobs.deciding.p_values import Reference
from ad_jobs.deciding.rules import Ruled
from ad_jobs.deciding.stacks import STACK_DECISIONS, StackJudge, Stacks
from ad_jobs.deciding.table import HeldOutRows, Verdict, write
from ad_jobs.results.object_columns import ObjectColumns
from ad_jobs.results.score_table import ScoreTable

HELD_OUT = np.array([1.0, 5.0, 2.0, 3.0, 4.0, 2.0], np.float32)
GROUPS = np.array([0, 0, 1, 1, 1, 2], np.int32)


def test_a_study_is_measured_by_its_highest_frame_and_their_number() -> None:
    found = StackJudge.of(HELD_OUT, GROUPS)
    # 4.5 is above all but one of six frames: p = 2/7; of three frames one comes out so by 1 - (5/7)^3.
    np.testing.assert_allclose(found.suspicion(np.array([4.5, 4.5]), np.array([1, 3])), [-2 / 7, (5 / 7) ** 3 - 1])
    # More frames make the same height less suspicious.
    assert (np.diff(found.suspicion(np.full(5, 4.5), np.arange(1, 6))) < 0).all()


def test_held_out_studies_are_measured_against_the_others() -> None:
    # 5 of two frames: none of the other four is as high, p = 1/5.
    # 4 of three: one of the other three, p = 2/4. 2 of one: four of five, p = 5/6.
    wanted = Reference(np.array([(4 / 5) ** 2 - 1, (1 / 2) ** 3 - 1, -5 / 6]))
    levels = StackJudge.of(HELD_OUT, GROUPS).stacks.levels(np.array([-0.3, -0.5, -0.85, -0.9]))
    assert levels.tolist() == wanted.levels(np.array([-0.3, -0.5, -0.85, -0.9])).tolist() == [0, 1, 2, 3]


def test_one_frame_far_above_all_is_the_least_that_can_be_told() -> None:
    alone = StackJudge.of(HELD_OUT, np.arange(6, dtype=np.int32))
    assert alone.stacks.n == 6
    assert alone.stacks.levels(alone.suspicion(np.array([9.0]), np.array([1]))) == 0
    # Every held-out frame scores as high.
    assert alone.suspicion(np.array([0.0]), np.array([4])) == -1


def test_studies_of_any_size_are_flagged_at_the_rate_asked_for() -> None:
    rng = np.random.default_rng(0)
    rates = {small: [] for small in (True, False)}
    for _ in range(300):
        sizes = rng.choice([1, 30], 240)
        # Frames of a study are alike.
        scores = [(rng.normal() + 0.5 * rng.normal(size=size)).astype(np.float32) for size in sizes]
        held_out = StackJudge.of(np.concatenate(scores[:119]), np.repeat(np.arange(119), sizes[:119]).astype(np.int32))
        suspicion = held_out.suspicion(np.array([one.max() for one in scores[119:]]), sizes[119:])
        flagged = held_out.stacks.p()[held_out.stacks.levels(suspicion)] <= 0.1
        for small in rates:
            rates[small].append(flagged[(sizes[119:] == 1) == small].mean())
    assert np.mean([*rates[True], *rates[False]]) == pytest.approx(0.1, abs=0.01)
    # Without the number of frames large studies would be flagged by far more often than small ones.
    assert np.mean(rates[False]) < 0.2


@pytest.mark.parametrize("alike", [0.0, 1.0])
def test_studies_larger_than_any_held_out_are_not_flagged_too_often(alike: float) -> None:
    rng = np.random.default_rng(0)

    def drawn(studies: int, frames: int) -> np.ndarray:
        return (alike * rng.normal(size=(studies, 1)) + rng.normal(size=(studies, frames))).astype(np.float32)

    flagged = []
    for _ in range(200):
        held_out = StackJudge.of(drawn(119, 5).ravel(), np.repeat(np.arange(119), 5).astype(np.int32))
        suspicion = held_out.suspicion(drawn(60, 40).max(axis=1), np.full(60, 40))
        flagged.append((held_out.stacks.p()[held_out.stacks.levels(suspicion)] <= 0.1).mean())
    # Frames that are alike are many for their number: fewer are flagged than was asked for, never more.
    assert 0.03 < np.mean(flagged) < 0.11
    # Of 595 held-out frames and 40: for the highest of all no less than 40 / 635, were frames not alike.
    least = held_out.smallest_p(np.array([5, 40, 200]))
    assert least[0] == pytest.approx(1 / 120)
    assert (least[1] <= 0.1, least[2] > 0.1) == (True, True)


def table(folder: Path) -> ScoreTable:
    rows = [
        kit.scored(0, 0, study_uid="1.2", series_uid="1.2.3", score=1.0, uri="/a/x/0.dcm", content_sha256=f"{3:064x}"),
        kit.scored(
            0,
            1,
            study_uid="1.2",
            series_uid="1.2.3",
            score=5.0,
            flagged=True,
            heatmap="heatmaps/p.tar#1,2",
            uri="/a/x/0.dcm",
        ),
        kit.scored(1, 0, study_uid="1.2", series_uid="1.2.3", score=5.0, flagged=True, uri="/a/y/1.dcm"),
        kit.scored(2, 0, study_uid="1.2", series_uid="1.2.4", score=3.0, uri="/a/y/2.dcm"),
        kit.scored(3, 0, score=2.0, uri="/a/y/3.png"),
        kit.scored(4, 0, score=2.5, uri="/a/y/4.png"),
        kit.scored(5, 0, score=0.5, uri="/a/b.zip!/c/5.png"),
        kit.scored(6, 0, score=0.25, uri="hmac:abc"),
        kit.scored(7, 0, score=0.25, uri="hmac:def"),
        {**kit.unscored(8, "truncated"), "study_uid": "1.2", "series_uid": "1.2.3"},
        {**kit.unscored(9, "not_an_image"), "study_uid": "1.2", "series_uid": "1.2.3"},
        {**kit.unscored(10, "truncated"), "study_uid": "1.9"},
    ]
    kit.write_part(folder, rows)
    return ScoreTable(str(folder), kit.record(folder, 11))


UNDIVIDED = By((), ObjectColumns({}))


def scores_held_out() -> dict[str, HeldOutScores]:
    rows = {
        "object": [f"{i:064x}" for i in range(6)],
        "anomalous": [False] * 6,
        "score": HELD_OUT,
        "group": GROUPS,
        "series": GROUPS,
    }
    return {kit.MODEL: HeldOutScores("c" * 12, "0" * 64, pa.table(rows))}


def test_rows_are_gathered_by_study_folder_or_object(tmp_path: Path) -> None:
    held, seen = scores_held_out(), HeldOutRows(scores_held_out())
    numbers = ObjectColumns({"instance_number": pa.array([7, 9, 8, *[None] * 8], pa.int32())})
    gather(table(tmp_path), held, "study", tmp_path / "g.parquet", by=UNDIVIDED, numbers=numbers, held_out=seen)
    judges = Judges(held, (), StackJudge.of_level("study"), 1)
    verdicts = {Cell(kit.MODEL): Verdict(Ruled(None, 2), np.ones(4))}
    flagged = write(Stacks(tmp_path / "g.parquet", held, UNDIVIDED), judges, verdicts, tmp_path / "d.parquet")
    assert flagged == {Cell(kit.MODEL): 2}
    assert seen.count[kit.MODEL] == 1
    rows = pq.read_table(tmp_path / "d.parquet")
    assert rows.schema.equals(STACK_DECISIONS)
    shown: pd.DataFrame = rows.to_pandas().set_index("group")
    assert sorted(shown.index) == ["/a/b.zip!/c", "/a/y", "1.2", "object 6", "object 7"]
    study = shown.loc["1.2"]
    assert (study["score"], study["frames"], study["flagged_frames"], study["failed_frames"]) == (5.0, 4, 2, 1)
    assert shown["failed_frames"].sum() == 1
    assert study["mean_top"] == pytest.approx(13 / 3)
    # The first of the two highest, with its heatmap and its place: the second of four, by instance number.
    assert (study["object_id"], study["frame"], study["heatmap"]) == (0, 1, "heatmaps/p.tar#1,2")
    assert (study["instance_number"], study["position"], study["of_frames"]) == (7, 2, 3)
    assert study["position_share"] == pytest.approx(1 / 2)
    assert (shown.loc["/a/y", "frames"], shown.loc["/a/y", "mean_top"]) == (2, 2.25)
    assert pd.isna(shown.loc["object 6", "position_share"])
    assert rows["rank"].to_pylist() == [1, 2, 3, 4, 5]
    assert shown["p"].is_monotonic_increasing
    assert shown["flagged"].tolist() == [True, True, False, False, False]
