"""compare: what differs between two runs, row by row, against pandas and SciPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pagekit import Page
from runkit import MODEL, SECOND, unscored
from runskit import image, made
from scipy.stats import spearmanr

from ad_jobs.cli import show
from ad_jobs.compare import compare
from ad_jobs.comparing.ranks import Ranks
from ad_jobs.errors import JobError, UsageError
from ad_jobs.results.run import read_record

HASH_1, HASH_2 = "1" * 64, "2" * 64


def bad(name: str, code: str, **values: Any) -> dict[str, Any]:
    return unscored(0, code) | {"uri": f"/a/{name}"} | values


def flagged(name: str, score: float, frame: int = 0, **values: Any) -> dict[str, Any]:
    return image(name, frame, score=score, flagged=score > 0.5, content_sha256=HASH_1) | values


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """Two runs whose objects have other numbers: one object each of every kind of change."""
    a = [
        flagged("same", 0.1),
        flagged("gone", 0.2),
        flagged("other content", 0.3),
        flagged("failed since", 0.4),
        bad("failed twice", "corrupt"),
        bad("failed otherwise", "corrupt"),
        flagged("flagged since", 0.45),
        flagged("no more flagged", 0.9),
        flagged("moved", 0.15),
        flagged("within", 0.25),
        *(flagged("frames", 0.1 * frame, frame) for frame in range(3)),
    ]
    b = [
        flagged("new", 0.2),
        *(flagged("frames", 0.1 * frame, frame) for frame in range(2)),
        flagged("within", 0.25 + 1e-6),
        flagged("moved", 0.35),
        flagged("no more flagged", 0.2),
        flagged("flagged since", 0.55),
        bad("failed otherwise", "empty"),
        bad("failed twice", "corrupt"),
        bad("failed since", "truncated"),
        flagged("other content", 0.3, content_sha256=HASH_2),
        flagged("same", 0.1),
    ]
    return made(tmp_path / "A", 1, a), made(tmp_path / "B", 2, b)


CHANGES = {
    ("/a/gone", 0): "only_a",
    ("/a/new", 0): "only_b",
    ("/a/frames", 2): "only_a",
    ("/a/other content", 0): "content",
    ("/a/failed since", 0): "status",
    ("/a/failed otherwise", 0): "status",
    ("/a/flagged since", 0): "flagged, score",
    ("/a/no more flagged", 0): "flagged, score",
    ("/a/moved", 0): "score",
}


def test_every_kind_of_change_is_found_and_nothing_else(two: tuple[str, str]) -> None:
    found = compare(*two)
    assert found["objects"] == {"both": 10, "only_a": 1, "only_b": 1, "content_changed": 1}
    assert [(one["a"], one["b"], one["rows"]) for one in found["statuses"]] == [
        ("corrupt", "empty", 1),
        ("scored", "truncated", 1),
    ]
    (model,) = found["models"]
    assert (model["rows"], model["scores_differ"], model["content_changed"]) == (8, 3, 1)
    flags = [model[f"flagged_{name}"] for name in ("both", "only_a", "only_b", "neither")]
    assert flags == [0, 1, 1, 6]
    assert model["largest_difference"] == pytest.approx(0.7)
    assert [row["uri"] for row in model["largest"]][:2] == ["/a/no more flagged", "/a/moved"]
    assert [row["uri"] for row in model["flags_changed"]] == ["/a/no more flagged", "/a/flagged since"]

    table = pq.read_table(found["differences"]).to_pandas()
    assert dict(zip(zip(table.uri, table.frame, strict=True), table.differs, strict=True)) == CHANGES
    assert list(zip(table.uri, table.frame, strict=True)) == sorted(CHANGES)
    assert found["rows_differ"] == len(CHANGES)
    moved = table.set_index("uri").loc["/a/moved"]
    assert (moved.score_a, moved.score_b) == (np.float32(0.15), np.float32(0.35))
    assert (moved.object_id_a, moved.object_id_b) == (8, 3)
    content = table.set_index("uri").loc["/a/other content"]
    assert (content.content_sha256_a, content.content_sha256_b) == (HASH_1, HASH_2)


def test_it_lies_below_the_second_run_or_where_it_is_asked_for(two: tuple[str, str], tmp_path: Path) -> None:
    before = {path: path.read_bytes() for run in two for path in Path(run).rglob("*") if path.is_file()}
    found = compare(*two)
    assert found["page"] == f"{two[1]}/compared/{read_record(two[0]).run_id}/index.html"
    assert json.loads(Path(found["page"]).with_name("comparison.json").read_text()) == found
    assert {path: path.read_bytes() for path in before} == before, "what belongs to a run is not touched"
    elsewhere = compare(*two, out=str(tmp_path / "elsewhere"))
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {
        "index.html",
        "differences.parquet",
        "comparison.json",
    }
    assert elsewhere["models"] == found["models"]


def test_the_page_shows_what_was_found_and_loads_nothing(two: tuple[str, str]) -> None:
    page = Page(Path(compare(*two)["page"]).read_text(encoding="utf-8"))
    assert page.open == [], "every tag is closed"
    assert "9 rows differ" in page.text
    assert "/a/no more flagged" in page.text
    assert page.values("svg", "aria-label")[0].startswith("Scores of 8 rows")
    assert page.values("img", "src") == page.values("script", "src") == []
    assert page.values("link", "href") == ["data:,"]


def test_a_run_beside_itself_differs_in_nothing(two: tuple[str, str], tmp_path: Path) -> None:
    found = compare(two[0], two[0], out=str(tmp_path / "out"))
    assert (found["settings"], found["rows_differ"], found["statuses"]) == ([], 0, [])
    assert found["models"][0]["rank_correlation"] == pytest.approx(1)
    assert found["models"][0]["largest"] == []
    assert "0 rows differ" in show.comparison_text(found)


def test_what_they_were_made_with_comes_first(two: tuple[str, str], tmp_path: Path) -> None:
    record = read_record(two[1])
    other = record.models[0].model_copy(update={"threshold": 0.75, "policy": {"window": "percentile"}})
    changed = made(
        tmp_path / "C",
        3,
        [flagged("same", 0.1)],
        versions=record.versions | {"torch": "99"},
        models=[other],
        config={"limits": {"timeout_s": 5.0}, "accept": ["all"]},
    )
    found = compare(two[0], changed)
    names = {one["name"]: (one["a"], one["b"]) for one in found["settings"]}
    assert names[f"model {MODEL}: threshold"] == (0.5, 0.75)
    assert names[f"model {MODEL}: policy.window"] == (None, "percentile")
    assert names["limits.timeout_s"] == (None, 5.0)
    assert names["accept"] == (None, ["all"])
    assert names["versions.torch"][1] == "99"
    text = show.comparison_text(found).splitlines()
    assert text[2].startswith(f"different: model {MODEL}: threshold")


@pytest.mark.parametrize("seed", range(3))
def test_many_rows_agree_with_pandas_and_scipy(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def rows(share: float) -> list[dict[str, Any]]:
        return [
            # Rounded, so that many are equal.
            flagged(f"{number:03d}", round(float(rng.uniform()), 2), frame, model_id=model_id)
            for number in range(60)
            if rng.uniform() < share
            for model_id in (MODEL, SECOND)
            for frame in range(1 + number % 3)
        ]

    runs = [made(tmp_path / name, day, rows(share)) for name, day, share in (("A", 1, 0.9), ("B", 2, 0.8))]
    found = compare(*runs)
    a, b = (pq.read_table(f"{run}/scores").to_pandas() for run in runs)
    both = a.merge(b, on=["uri", "frame", "model_id"], suffixes=("_a", "_b"))
    every = a.merge(b, on=["uri", "frame", "model_id"], how="outer", suffixes=("_a", "_b"))
    for model in found["models"]:
        mine = both[both.model_id == model["model_id_a"]]
        wanted = spearmanr(mine.score_a, mine.score_b).statistic
        assert model["rank_correlation"] == pytest.approx(wanted, abs=1e-12)
        assert model["rows"] == len(mine)
        assert model["largest_difference"] == pytest.approx((mine.score_b - mine.score_a).abs().max())
        assert model["flagged_only_a"] == (mine.flagged_a & ~mine.flagged_b).sum()
    differing = every[(every.score_a - every.score_b).abs().gt(1e-4) | every.score_a.isna() | every.score_b.isna()]
    table = pq.read_table(found["differences"]).to_pandas()
    assert len(table) == found["rows_differ"] == len(differing)
    assert set(zip(table.uri, table.frame, table.model_id_a, strict=True)) == set(
        zip(differing.uri, differing.frame, differing.model_id, strict=True)
    )
    assert found["objects"]["both"] == len(set(a.uri) & set(b.uri))
    assert found["objects"]["only_a"] == len(set(a.uri) - set(b.uri))


def test_two_models_are_compared_by_ranks_and_flags(tmp_path: Path) -> None:
    a = made(tmp_path / "A", 1, [flagged(name, score) for name, score in (("x", 0.1), ("y", 0.2), ("z", 0.6))])
    other = [flagged(name, score, model_id=SECOND) for name, score in (("x", 30.0), ("y", 0.2), ("z", 40.0))]
    found = compare(a, made(tmp_path / "B", 2, other))
    (model,) = found["models"]
    assert model["rank_correlation"] == pytest.approx(0.5)
    assert (model["scores_differ"], model["largest_difference"]) == (0, None)
    assert model["flagged_only_b"] == 1
    assert pq.read_table(found["differences"]).column("uri").to_pylist() == ["/a/x"]
    assert found["settings"][0] == {"name": "models", "a": [MODEL], "b": [SECOND]}


def test_reduced_precision_may_differ_by_more(tmp_path: Path) -> None:
    a = made(tmp_path / "A", 1, [flagged("x", 0.4), flagged("y", 0.4)])
    rows = [flagged("x", 0.409), flagged("y", 0.42)]
    found = compare(a, made(tmp_path / "B", 2, rows, config={"amp": True}))
    assert (found["tolerance"], found["models"][0]["scores_differ"]) == (0.02, 1)


def test_runs_that_have_nothing_in_common_to_compare_are_refused(two: tuple[str, str], tmp_path: Path) -> None:
    several = [image("x", model_id=model) for model in ("a" * 12, "b" * 12)]
    with pytest.raises(UsageError, match="models of both"):
        compare(two[0], made(tmp_path / "C", 3, several))
    hashed = made(tmp_path / "D", 4, [image("x")], config={"identifiers": "hashed"})
    with pytest.raises(UsageError, match="both are hashed, or neither"):
        compare(two[0], hashed)
    with pytest.raises(UsageError, match="A run must be a folder"):
        compare(two[0], str(tmp_path))


def test_a_run_with_a_damaged_table_is_not_compared(two: tuple[str, str]) -> None:
    next(Path(two[1], "scores").iterdir()).unlink()
    with pytest.raises(JobError, match="cannot be read"):
        compare(*two)
    assert not Path(two[1], "compared").exists()


def test_ranks_of_equal_scores_are_their_mean() -> None:
    scores = np.array([3, 1, 3, 2, 3], np.float32)
    assert Ranks(scores.copy()).of(scores).tolist() == [3, 0, 3, 1, 3]
    assert Ranks(scores[:0]).of(scores[:0]).tolist() == []


def test_the_rank_correlation_is_over_rows_of_the_same_content(tmp_path: Path) -> None:
    # Without `changed` both orders are alike; its content is another in B, and so is its place.
    names = [("x", 0.1, 0.1), ("y", 0.2, 0.25), ("z", 0.3, 0.35), ("changed", 0.9, 0.01)]
    a = made(tmp_path / "A", 1, [flagged(name, score) for name, score, _ in names])
    other = [
        flagged(name, score, model_id=model, content_sha256=HASH_2 if name == "changed" else HASH_1)
        for name, _, score in names
        for model in (MODEL, SECOND)
    ]
    one = compare(a, made(tmp_path / "B", 2, [row for row in other if row["model_id"] == MODEL]))
    two = compare(a, made(tmp_path / "C", 3, [row for row in other if row["model_id"] == SECOND]))
    for found in (one, two):
        (model,) = found["models"]
        assert (model["rows"], model["rows_ranked"], model["content_changed"]) == (4, 3, 1)
        assert model["rank_correlation"] == pytest.approx(1)
        assert "rank correlation 1.0000 over 3 rows of the same content" in show.comparison_text(found)
        assert "1.0000 over 3 rows of the same content" in Page(Path(found["page"]).read_text()).text
    assert one["models"][0]["largest"][0]["uri"] == "/a/changed"
    assert two["models"][0]["largest"] == [], "what has another content has no rank to lose"


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        ({"x": (0.1, 0.2)}, "fewer than two rows of the same content were scored in both"),
        ({"x": (0.1, 0.2), "y": (0.1, 0.3)}, "all scores in A are equal"),
        ({"x": (0.1, 0.2), "y": (0.1, 0.2)}, "all scores in A and in B are equal"),
    ],
)
def test_why_there_is_no_rank_correlation_is_said(
    tmp_path: Path, scores: dict[str, tuple[float, float]], why: str
) -> None:
    runs = [
        made(tmp_path / run, day, [flagged(name, both[day - 1]) for name, both in scores.items()])
        for day, run in ((1, "A"), (2, "B"))
    ]
    found = compare(*runs)
    assert (found["models"][0]["rank_correlation"], found["models"][0]["rank_note"]) == (None, why)
    assert f"rank correlation none, as {why}" in show.comparison_text(found)
    text = Page(Path(found["page"]).read_text()).text
    assert f"none: {why}" in text
    assert "None" not in text


def test_an_empty_run_is_compared(two: tuple[str, str], tmp_path: Path) -> None:
    base = read_record(two[0])
    empty = made(tmp_path / "E", 5, [], models=base.models)
    found = compare(two[0], empty)
    assert found["objects"] == {"both": 0, "only_a": 11, "only_b": 0, "content_changed": 0}
    assert found["models"][0]["rank_correlation"] is None
    assert isinstance(pq.read_table(found["differences"]).to_pandas(), pd.DataFrame)
