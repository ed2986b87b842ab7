"""What two runs' rows beside each other come to, in numbers; and those that differ, in a table of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
from numpy.typing import NDArray

from ad_jobs.archive.sql import streaming
from ad_jobs.comparing.joined import CHANGES, VALUES
from ad_jobs.comparing.ranks import Correlation, Floats, Ranks
from ad_jobs.comparing.settings import Pair
from ad_jobs.schema import SCORED

# Rows that are named of each kind.
SHOWN = 20
_BATCH_ROWS = 65_536
_BOTH_SCORED = f"pair = $pair AND status_a = '{SCORED}' AND status_b = '{SCORED}'"
# Every object has a first frame under every model, and its content is that of all its rows.
_OBJECTS = """
    SELECT count(*) FILTER (WHERE NOT only_a AND NOT only_b) AS both, count(*) FILTER (WHERE only_a) AS only_a,
        count(*) FILTER (WHERE only_b) AS only_b, count(*) FILTER (WHERE content) AS content_changed
    FROM joined WHERE frame = 0 AND pair = 0
"""
_STATUSES = """
    SELECT coalesce(error_code_a, status_a) AS a, coalesce(error_code_b, status_b) AS b, count(*) AS rows,
        arg_min(uri, uri) AS example
    FROM joined WHERE status GROUP BY a, b ORDER BY rows DESC, a, b
"""
_FLAGS = f"""
    SELECT count(*) AS rows, count(*) FILTER (WHERE content) AS content_changed,
        count(*) FILTER (WHERE score) AS scores_differ,
        count(*) FILTER (WHERE flagged_a AND flagged_b) AS flagged_both,
        count(*) FILTER (WHERE flagged_a AND NOT flagged_b) AS flagged_only_a,
        count(*) FILTER (WHERE flagged_b AND NOT flagged_a) AS flagged_only_b,
        count(*) FILTER (WHERE NOT flagged_a AND NOT flagged_b) AS flagged_neither
    FROM joined WHERE {_BOTH_SCORED}
"""
_SCORES = f"SELECT score_a, score_b, file_row_number, content FROM joined WHERE {_BOTH_SCORED}"
_NAMED = "uri, frame, score_a, score_b, threshold_a, threshold_b, flagged_a, flagged_b, content"
_DIFFERENCES = f"""
    SELECT uri, frame, model_id_a, model_id_b,
        concat_ws(', ', {", ".join(f"CASE WHEN {name} THEN '{name}' END" for name in CHANGES)}) AS differs,
        {", ".join(f"{name}_a, {name}_b" for name in VALUES)}
    FROM joined JOIN models USING (pair) WHERE differs ORDER BY uri, frame, pair
"""


class Scores(NamedTuple):
    """What was scored in both runs under one pair of models: [n] each.

    `a`, `b` float32; `places` int64, in the joined file; `content` bool, whether the object's content changed.
    """

    a: Floats
    b: Floats
    places: NDArray[np.int64]
    content: NDArray[np.bool_]


class _Most:
    """Of many numbers the largest, and where they stand."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._values: NDArray[np.floating[Any]] = np.empty(0, np.float64)
        self._places = np.empty(0, np.int64)

    def add(self, values: NDArray[np.floating[Any]], places: NDArray[np.int64]) -> None:
        values, places = np.concatenate([self._values, values]), np.concatenate([self._places, places])
        if len(values) > self._count:
            most = np.argpartition(-values, self._count)[: self._count]
            values, places = values[most], places[most]
        self._values, self._places = values, places

    @property
    def largest(self) -> float | None:
        """None of none."""
        return float(self._values.max()) if len(self._values) else None

    @property
    def by_place(self) -> dict[int, float]:
        """Those above zero."""
        return {int(p): float(v) for p, v in zip(self._places, self._values, strict=True) if v > 0}


class Joined:
    """The joined rows, as many at a time as are needed."""

    def __init__(self, path: Path, compared: Sequence[Pair]) -> None:
        self._path = path
        self._compared = compared

    def objects(self) -> dict[str, int]:
        """How many objects both runs have, or one of them; and of how many the content changed."""
        return self._rows(_OBJECTS)[0]

    def statuses(self) -> list[dict[str, Any]]:
        """How many rows have another status or error code, by both, the most frequent first, each with an example."""
        return self._rows(_STATUSES)

    def write_differences(self, path: Path) -> int:
        """Write the rows that differ, ordered by URI, frame and model; how many they are."""
        with self._connection() as connection:
            names = [(i, pair.a.model_id, pair.b.model_id) for i, pair in enumerate(self._compared)]
            connection.execute("CREATE TABLE models (pair INTEGER, model_id_a VARCHAR, model_id_b VARCHAR)")
            connection.executemany("INSERT INTO models VALUES (?, ?, ?)", names)
            connection.sql(_DIFFERENCES).write_parquet(str(path), compression="zstd")
            found = connection.execute("SELECT count(*) FROM joined WHERE differs").fetchone()
        return int(found[0])

    def scores(self, pair: int) -> Iterator[Scores]:
        """What was scored in both runs under a pair of models, some rows at a time, in no order."""
        with self._connection() as connection:
            for batch in connection.sql(_SCORES, params={"pair": pair}).to_arrow_reader(_BATCH_ROWS):
                yield Scores(*(batch[name].to_numpy(zero_copy_only=False) for name in batch.schema.names))

    def model(self, pair: int) -> dict[str, Any]:
        """What became of the scores and flags of one pair of models.

        Ranks are among the rows whose content is the same in both runs; eight bytes are held for each of them.
        """
        models = self._compared[pair]
        counted = self._rows(_FLAGS, pair=pair)[0]
        unchanged = counted["rows"] - counted["content_changed"]
        ranks = self._ranks(pair, unchanged)
        correlation, most = Correlation(unchanged), _Most(SHOWN)
        for some in self.scores(pair):
            kept = ~some.content
            ranked = ranks[0].of(some.a[kept]), ranks[1].of(some.b[kept])
            correlation.add(*ranked)
            # Scores of two models have two scales; their ranks do not.
            if models.same:
                most.add(np.abs(some.b - some.a), some.places)
            else:
                most.add(np.abs(ranked[1] - ranked[0]), some.places[kept])
        changed = f"SELECT {_NAMED} FROM joined WHERE pair = $pair AND flagged ORDER BY abs(score_b - score_a) DESC"
        # Of two decisions on the same scores the highest come first.
        changed += ", greatest(score_a, score_b) DESC"
        return {
            "model_id_a": models.a.model_id,
            "model_id_b": models.b.model_id,
            "kind_a": models.a.kind,
            "kind_b": models.b.kind,
            "threshold_a": models.a.threshold,
            "threshold_b": models.b.threshold,
            **counted,
            "rows_ranked": unchanged,
            "rank_correlation": correlation.value,
            "rank_note": None if correlation.value is not None else _why_none(unchanged, ranks),
            "largest_difference": most.largest if models.same else None,
            "largest": self._largest(most.by_place),
            "flags_changed": self._rows(f"{changed}, uri, frame LIMIT {SHOWN}", pair=pair),
        }

    def _ranks(self, pair: int, count: int) -> tuple[Ranks, Ranks]:
        """The orders of the scores in A and in B, of the rows whose content is the same, `count` of them."""
        a, b = np.empty(count, np.float32), np.empty(count, np.float32)
        start = 0
        for some in self.scores(pair):
            kept = ~some.content
            end = start + int(kept.sum())
            a[start:end], b[start:end] = some.a[kept], some.b[kept]
            start = end
        return Ranks(a), Ranks(b)

    def _largest(self, order: dict[int, float]) -> list[dict[str, Any]]:
        """The rows at these places, the first by far first."""
        rows = self._rows(
            f"SELECT file_row_number, {_NAMED} FROM joined WHERE list_contains($places, file_row_number)",
            places=list(order),
        )
        rows.sort(key=lambda row: (-order[row["file_row_number"]], row["uri"], row["frame"]))
        return [{name: value for name, value in row.items() if name != "file_row_number"} for row in rows]

    def _rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        with self._connection() as connection:
            found: list[dict[str, Any]] = connection.sql(sql, params=parameters).to_arrow_table().to_pylist()
        return found

    @contextmanager
    def _connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with streaming({}) as connection:
            # A name in quotes: a folder may have any.
            file = str(self._path).replace("'", "''")
            connection.execute(f"CREATE VIEW joined AS FROM read_parquet('{file}', file_row_number = true)")
            yield connection


def _why_none(rows: int, ranks: tuple[Ranks, Ranks]) -> str:
    """Why scores have no rank correlation."""
    if rows < 2:
        return "fewer than two rows of the same content were scored in both"
    where = [name for name, one in zip("AB", ranks, strict=True) if one.all_equal]
    return f"all scores in {' and in '.join(where)} are equal"
