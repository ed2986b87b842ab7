"""Which rows of a run are handed on: what it flagged or a decision did, the highest scores, or all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ad_jobs.archive.sql import Stream, streaming
from ad_jobs.deciding.record import table_of
from ad_jobs.deciding.stacks import STACK_DECISIONS, UID, places_in
from ad_jobs.deciding.table import DECISIONS
from ad_jobs.errors import JobError
from ad_jobs.results.run import RunRecord
from ad_jobs.results.score_table import BATCH_ROWS, ScoreTable
from ad_jobs.schema import SCORED, SCORES
from cluster import storage

# A run's own rows as they are handed on, what is looked at first coming first; times of a scan are left out.
ROWS = (
    *("uri", "frame", "study_uid", "score", "threshold", "flagged", "model_id", "modality", "manufacturer"),
    *("study_month", "status", "error_code", "error_detail", "object_id", "series_uid", "sop_uid", "rows", "columns"),
    *("bits", "photometric", "transfer_syntax", "content_sha256", "bytes", "heatmap", "run_id"),
)
# Before them, and 1 is the highest of the model.
RANK = "rank"
# What a decision adds to them.
DECIDED = ("p", "q", "group")
_KEY = ("object_id", "frame", "model_id")
# What of a frame its picture needs.
_OF_A_FRAME = (*_KEY, "uri", "status", "score", "threshold", "flagged", "heatmap", "content_sha256", "study_uid")
# The column of how many rows there are in all.
SELECTED = "selected"
_WANTED = pa.schema([STACK_DECISIONS.field(name) for name in ("model_id", "group", "object_id", "frame")])
# What a decision's models flag by; null where that is no score.
_RULES = pa.schema([SCORES.field("model_id"), SCORES.field("threshold")])

BY_OBJECT = "object_id, frame, model_id"
# The frames of a model's study one after the other.
BY_STUDY = "model_id, coalesce(study_uid, 'object ' || object_id), object_id, frame"


class Selection(NamedTuple):
    """Rows of a finished run: what `decision` flagged, or the run itself where that is None.

    `top` takes the so many highest of each model instead, and `everything` all rows.
    """

    run_uri: str
    record: RunRecord
    decision: dict[str, Any] | None = None
    top: int | None = None
    everything: bool = False

    @property
    def of_stacks(self) -> bool:
        """Whether a row of the decision is a study or a series."""
        return self.decision is not None and self.decision["level"] in UID


@contextmanager
def table_rows(selection: Selection) -> Iterator[Stream]:
    """The selected rows as one list: of a decision about studies or series its rows of these.

    The highest come first. Scores of several models have no common scale, and ranks have one: rows of one frame, or
    study, stand together, at the best rank that a model gives it.

    Raises:
        JobError: a part of the run is missing or damaged.
    """
    if selection.of_stacks:
        names = [RANK, *(name for name in STACK_DECISIONS.names if name != RANK)]
        schema = pa.schema([STACK_DECISIONS.field(name) for name in names])
        with streaming({"decided": Stream(schema, _decided(selection, names))}) as connection:
            order = _one_list('"group"')
            reader = connection.sql(f"FROM decided ORDER BY {order}").to_arrow_reader(BATCH_ROWS)
            yield Stream(reader.schema, reader)
        return
    ranked = f"row_number() OVER (PARTITION BY model_id ORDER BY {_column('score')} DESC, object_id, frame)"
    by_score = f"CASE WHEN {_column('score')} IS NOT NULL THEN {ranked} END"
    rank = f"{by_score if selection.decision is None else 'decided.rank'} AS {RANK}"
    columns = [rank, *(_column(name) for name in ROWS)]
    with _frames(selection, ROWS, columns, _one_list("object_id, frame")) as stream:
        yield stream


@contextmanager
def frame_rows(selection: Selection, order: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The selected frames in an order; each row has model_id, object_id, frame, uri, score, heatmap and so on, and
    SELECTED, how many there are.

    Of a study or series that a decision flagged, these are the frames that the run flagged, and its highest.

    Raises:
        JobError: as `table_rows`.
    """
    columns = [_column(name) for name in _OF_A_FRAME]
    with _frames(selection, _OF_A_FRAME, columns, order, f", count(*) OVER () AS {SELECTED}") as (_, batches):
        yield (row for batch in batches for row in batch.to_pylist())


def _one_list(unit: str) -> str:
    """The order of rows of which several are of one unit."""
    return f"min({RANK}) OVER (PARTITION BY {unit}) NULLS LAST, {unit}, {RANK} NULLS LAST, model_id"


def _column(name: str) -> str:
    return f'scores."{name}"'


@contextmanager
def _frames(
    selection: Selection, read: Sequence[str], columns: list[str], order: str, more: str = ""
) -> Iterator[Stream]:
    table = ScoreTable(selection.run_uri, selection.record)
    tables: dict[str, Stream] = {}
    parameters: list[object] = []
    if selection.of_stacks:
        schema = pa.schema([*(SCORES.field(name) for name in read), pa.field("group", pa.string())])
        tables["wanted"] = Stream(_WANTED, _decided(selection, _WANTED.names))
        tables["scores"] = Stream(schema, _with_group(selection, table, schema))
        highest = "(scores.model_id, scores.object_id, scores.frame) IN (SELECT (model_id, object_id, frame) FROM kept)"
        # No join: a decision by columns may have a study twice.
        sql = f"""
            WITH kept AS MATERIALIZED (FROM wanted) SELECT {", ".join(columns)} FROM scores
            WHERE status = '{SCORED}' AND (model_id, "group") IN (SELECT (model_id, "group") FROM kept)
            {"" if selection.everything else f"AND (flagged OR {highest})"}
        """
    elif selection.decision is not None:
        names = [*_KEY, "flagged", RANK, *DECIDED]
        tables["decided"] = Stream(pa.schema([DECISIONS.field(n) for n in names]), _decided(selection, names))
        tables["scores"] = Stream(pa.schema([SCORES.field(n) for n in read]), table.batches(read))
        models = {one["model_id"]: one["threshold"] for one in selection.decision["models"]}
        tables["rules"] = Stream.of(pa.table([list(models), pa.array(models.values(), pa.float32())], _RULES))
        instead = {_column("flagged"): "decided.flagged", _column("threshold"): "rules.threshold"}
        columns = [instead.get(column, column) for column in columns] + [f'decided."{name}"' for name in DECIDED]
        # A row without a score is in no decision.
        sql = f"""
            SELECT {", ".join(columns)} FROM scores {"LEFT" if selection.everything else ""} JOIN decided
                ON scores.object_id = decided.object_id AND scores.frame = decided.frame
                AND scores.model_id = decided.model_id
            LEFT JOIN rules ON scores.model_id = rules.model_id
        """
    else:
        tables["scores"] = Stream(pa.schema([SCORES.field(n) for n in read]), table.batches(read))
        sql = f"SELECT {', '.join(columns)} FROM scores"
        if selection.top is not None:
            parameters = [SCORED, selection.top]
            sql += """ WHERE status = $1 QUALIFY $2 >=
                row_number() OVER (PARTITION BY model_id ORDER BY score DESC, object_id, frame)"""
        elif not selection.everything:
            sql += " WHERE flagged"
    with streaming(tables) as connection:
        ordered = f"SELECT *{more} FROM ({sql}) ORDER BY {order}"
        reader = connection.sql(ordered, params=parameters).to_arrow_reader(BATCH_ROWS)
        yield Stream(reader.schema, reader)


def _decided(selection: Selection, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The selected rows of the decision itself, by model and rank."""
    assert selection.decision is not None
    uri = table_of(selection.run_uri, selection.decision["decision_id"])
    filesystem, path = storage.filesystem(uri)
    needed = list(dict.fromkeys([*columns, "flagged", "rank"]))
    try:
        with filesystem.open_input_file(path) as file:
            for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=needed):
                keep = batch["flagged"] if selection.top is None else pc.less_equal(batch["rank"], selection.top)
                kept = batch if selection.everything else batch.filter(keep)
                yield pa.RecordBatch.from_arrays([_known(kept, name) for name in columns], names=list(columns))
    except (OSError, pa.ArrowException) as error:
        raise JobError(f"{uri} cannot be read.", "Remove the decision, and decide again.") from error


def _known(rows: pa.RecordBatch, name: str) -> pa.Array:
    """A column; null in a decision of an earlier version, which did not have it."""
    return rows[name] if name in rows.schema.names else pa.nulls(rows.num_rows, STACK_DECISIONS.field(name).type)


def _with_group(selection: Selection, table: ScoreTable, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    assert selection.decision is not None
    level = selection.decision["level"]
    read = [name for name in schema.names if name != "group"]
    for batch in table.batches(list(dict.fromkeys([*read, UID[level], "uri"]))):
        yield pa.RecordBatch.from_arrays([*(batch[name] for name in read), places_in(batch, level)], schema=schema)
