"""Labels of images as labels of their studies or series: one is anomalous if any of its labelled frames is."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pyarrow as pa

from ad_jobs.archive.sql import Stream, streaming
from ad_jobs.deciding.stacks import UID, Level, places_in
from ad_jobs.evaluation.labels import MISSING, Joined, Labels
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.schema import FAILED, SCORED, SCORES, SKIPPED

_LABELLED = """
    SELECT stack, bool_or(anomalous) AS anomalous, min("group") AS "group", list(DISTINCT uri) AS uris
    FROM (
        SELECT stack, rows.uri AS uri, labels.anomalous AS anomalous, labels."group" AS "group"
        FROM rows JOIN labels ON rows.uri = labels.uri AND (labels.frame IS NULL OR labels.frame = rows.frame))
    GROUP BY stack ORDER BY stack
"""
# All frames of what has a label, labelled or not.
_OUTCOMES = f"""
    SELECT model_id, stack, max(score) AS score, coalesce(bool_or(flagged), false) AS flagged,
        CASE WHEN bool_or(status = '{SCORED}') THEN '{SCORED}' WHEN bool_or(status = '{FAILED}') THEN '{FAILED}'
            ELSE '{SKIPPED}' END AS status
    FROM rows SEMI JOIN labelled USING (stack) GROUP BY ALL ORDER BY ALL
"""
_COUNT = "SELECT count(DISTINCT stack) FROM rows"


class LabelledStacks:
    """Studies, or series, that have a labelled frame; and the outcome of each under every model."""

    def __init__(self, table: ScoreTable, labels: Labels, level: Level) -> None:
        """Reads the table three times.

        Raises:
            JobError: a part of the table is missing or damaged.
        """
        given = pa.table(
            {
                "uri": pa.array(labels.table["uri"], pa.string()),
                "frame": pa.array(labels.table["frame"].astype("Int64"), pa.int64()),
                "anomalous": pa.array(labels.table["anomalous"], pa.bool_()),
                "group": pa.array(labels.table["group"], pa.string()),
            }
        )
        with streaming({"rows": _rows(table, level, ["frame"]), "labels": Stream.of(given)}) as connection:
            found = connection.sql(_LABELLED).to_arrow_table()
        with streaming({"rows": _rows(table, level, [])}) as connection:
            (self._count,) = connection.execute(_COUNT).fetchone()
        named = Stream.of(found.select(["stack"]))
        columns = ["model_id", "status", "score", "flagged"]
        with streaming({"rows": _rows(table, level, columns), "labelled": named}) as connection:
            outcomes = connection.sql(_OUTCOMES).to_arrow_table()
        self._labelled: pd.DataFrame = found.to_pandas()
        self._outcomes: pd.DataFrame = outcomes.to_pandas()
        known = {uri for uris in self._labelled["uris"] for uri in uris}
        self._missing = sorted(set(labels.table["uri"]) - known)

    def joined(self, model_id: str) -> Joined:
        """Each of them beside its outcome under one model, as `labels.join` has images; no pixels are judged.

        A label of an image that is not in the run stands by itself, as missing.
        """
        outcomes = self._outcomes[self._outcomes["model_id"] == model_id].drop(columns="model_id")
        table = self._labelled.drop(columns="uris").merge(outcomes, on="stack", how="left")
        missing = pd.DataFrame({"stack": self._missing, "anomalous": False, "status": MISSING, "flagged": False})
        table = pd.concat([table, missing]) if len(missing) else table
        table = table.rename(columns={"stack": "uri"}).reset_index(drop=True)
        nothing = pd.Series([None] * len(table), dtype=object)
        kept = table.assign(
            mask=nothing,
            heatmaps=pd.Series([[None]] * len(table), dtype=object),
            group=pd.Series([group if isinstance(group, str) else None for group in table["group"]], dtype=object),
            score=table["score"].astype("float64"),
        )
        return Joined(kept, int(self._count) - len(self._labelled))


def _rows(table: ScoreTable, level: Level, columns: list[str]) -> Stream:
    """The table's rows with what each belongs to."""
    names = list(dict.fromkeys(["uri", *columns]))
    read = list(dict.fromkeys([*names, "object_id", UID[level]]))
    schema = pa.schema([*(SCORES.field(name) for name in names), ("stack", pa.string())])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in table.batches(read):
            arrays = [*(batch[name] for name in names), places_in(batch, level)]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return Stream(schema, batches())
