"""Several runs as one table: of an object and a model, the newest run's rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest
from runkit import MODEL, SECOND, unscored
from runskit import image, made

from ad_jobs.errors import UsageError
from ad_jobs.results.read import read_scores
from ad_jobs.results.run import ParentRef
from ad_jobs.results.runs import open_runs

PAGE = Path(__file__).parents[3] / "docs" / "columns.md"


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Three days: b changed on the second from three frames to one, c failed on the third, d is new there."""
    return [
        made(
            tmp_path / "1",
            1,
            [
                image("a", score=1.0),
                *(image("b", frame, score=2.0) for frame in range(3)),
                image("c", score=3.0),
                image("a", model_id=SECOND, score=10.0),
                *(image("b", frame, model_id=SECOND, score=20.0) for frame in range(3)),
                image("c", model_id=SECOND, score=30.0),
            ],
        ),
        made(tmp_path / "2", 2, [image("b", score=22.0)]),
        made(tmp_path / "3", 3, [unscored(0, "corrupt") | {"uri": "/a/c"}, image("d", score=4.0)]),
    ]


WANTED = [
    ("/a/a", 0, MODEL, 1.0),
    ("/a/a", 0, SECOND, 10.0),
    ("/a/b", 0, MODEL, 22.0),
    *(("/a/b", frame, SECOND, 20.0) for frame in range(3)),
    ("/a/c", 0, MODEL, None),
    ("/a/c", 0, SECOND, 30.0),
    ("/a/d", 0, MODEL, 4.0),
]


def rows(table: Any) -> list[tuple[Any, ...]]:
    found = table[["uri", "frame", "model_id", "score"]].astype(object)
    return list(found.where(found.notna(), None).itertuples(index=False, name=None))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_newest_rows_of_an_object_and_a_model_win_whatever_the_order(runs: list[str], order: tuple[int]) -> None:
    found = [runs[number] for number in order]
    assert rows(open_runs(found).scores()) == WANTED
    assert rows(read_scores(found)) == WANTED
    assert sum(batch.num_rows for batch in open_runs(found).batches(["score"])) == len(WANTED)


def test_a_run_is_newer_than_its_parent_whatever_clocks_say(tmp_path: Path) -> None:
    first = made(tmp_path / "1", 3, [image("a", score=1.0)])
    parent = ParentRef(uri=first, run_id=f"{3:012x}", sha256="0" * 64, retry="failed", retried=1)
    second = made(tmp_path / "2", 2, [image("a", score=2.0)], parent=parent)
    for order in ([first, second], [second, first]):
        assert open_runs(order).scores()["score"].tolist() == [2.0]


def test_a_condition_sees_the_newest_rows_alone(runs: list[str]) -> None:
    found = open_runs(runs).scores(columns=["score"], where=f"uri = '/a/b' AND model_id = '{MODEL}'")
    assert found.score.tolist() == [22.0]


def asked_of_the_page(runs: list[str]) -> pd.DataFrame:
    """What the page's query over several runs gives of these, from the oldest on."""
    (query,) = (text for text in re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL) if "'run-2/" in text)
    one = re.search(r"SELECT 1 AS age, \* FROM 'run-1/scores/\*.parquet'.*?parquet'", query, re.DOTALL)
    assert one is not None
    each = " UNION ALL ".join(f"SELECT {age} AS age, * FROM '{run}/scores/*.parquet'" for age, run in enumerate(runs))
    return duckdb.sql(query.replace(one[0], each)).df().sort_values(["uri", "frame", "model_id"])


def test_the_query_of_the_page_gives_the_same_rows(runs: list[str]) -> None:
    assert rows(asked_of_the_page(runs)) == WANTED


def test_the_query_of_the_page_goes_by_lineage_as_runs_do(tmp_path: Path) -> None:
    first = made(tmp_path / "1", 3, [image("a", score=1.0)])
    parent = ParentRef(uri=first, run_id=f"{3:012x}", sha256="0" * 64, retry="failed", retried=1)
    # Its rows are older, by the clock of another machine.
    second = made(tmp_path / "2", 2, [image("a", score=2.0)], parent=parent)
    assert asked_of_the_page([first, second])["score"].tolist() == [2.0]
    assert open_runs([first, second]).scores()["score"].tolist() == [2.0]


def test_runs_that_cannot_be_one_table_are_refused(runs: list[str], tmp_path: Path) -> None:
    hashed = made(tmp_path / "4", 4, [image("a")], config={"identifiers": "hashed"})
    for several, words in (([], "One or more"), ([runs[0]] * 2, "Name each once"), ([runs[0], hashed], "or none")):
        with pytest.raises(UsageError, match=words):
            open_runs(several)
    with pytest.raises(UsageError, match="allow_unfinished"):
        read_scores(runs, allow_unfinished=True)
    with pytest.raises(UsageError, match="one of the runs"):
        open_runs(runs).heatmap({"run_id": "x", "heatmap": "y"})
