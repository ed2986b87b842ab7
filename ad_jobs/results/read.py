"""A finished run as a user sees it: its record, the score table as a DataFrame or a dataset, heatmaps and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import pandas as pd
import pyarrow as pa

from ad_jobs.errors import JobError, UsageError
from ad_jobs.results.heatmaps import Heatmap, decode_png, parse_reference
from ad_jobs.results.newest import as_one
from ad_jobs.results.run import RunRecord, read_record
from ad_jobs.results.score_table import Rows, ScoreTable, UnfinishedTable
from ad_jobs.schema import SCORES
from ad_jobs.values import place
from cluster import storage
from cluster.counting import counted

__all__ = ["Heatmap", "as_pandas", "known_columns", "open_heatmap", "read_run", "read_scores", "scores_of"]

# Nullable pandas types: df[df.flagged] works although a failed row's flag is null, and numbers stay whole.
_NULLABLE = {
    pa.bool_(): pd.BooleanDtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
}


def read_run(run: str) -> RunRecord:
    """The record of a finished run.

    Raises:
        UsageError: not a run, or an unfinished one.
    """
    return read_record(place(run))


def read_scores(
    run: str | Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    where: str | None = None,
    allow_unfinished: bool = False,
) -> pd.DataFrame:
    """The score table, one row a frame and model, ordered by object, frame and model.

    Args:
        run: folder or s3:// URI of the run; or several, read as one table as `open_runs` does.
        columns: some of the table's columns, in the wanted order; all by default.
        where: an SQL condition over the table (DuckDB's dialect), as `flagged AND modality = 'MR'`; only the rows that
            meet it are read into memory.
        allow_unfinished: read what an unfinished run has so far.

    >>> scores = read_scores("run", columns=["status", "flagged"])
    >>> scores.status.value_counts().to_dict()
    {'scored': 18, 'failed': 1}
    >>> bool(scores[scores.flagged].flagged.all())
    True

    Raises:
        UsageError: not a run, an unfinished one (unless allowed), an unknown column, or no condition.
        JobError: a part that run.json lists is missing or has another number of rows.
    """
    if not isinstance(run, str | PathLike):
        if allow_unfinished:
            raise UsageError("allow_unfinished is for one run.", counted(len(run), "run"), "Read it by itself.")
        return scores_of(as_one([ScoreTable(place(one), read_run(one)) for one in run]), columns, where)
    run = place(run)
    record = read_record(run, allow_unfinished)
    table = UnfinishedTable(run) if record is None else ScoreTable(run, record)
    return scores_of(table, columns, where)


def scores_of(table: Rows, columns: Sequence[str] | None, where: str | None) -> pd.DataFrame:
    """`read_scores` of a table."""
    return as_pandas(table.rows(known_columns(columns), where))


def as_pandas(table: pa.Table) -> pd.DataFrame:
    """Rows of the score table as pandas has them: nullable numbers and flags, object and frame whole."""
    frame: pd.DataFrame = table.to_pandas(types_mapper=_NULLABLE.get)
    whole = (("object_id", "int64"), ("frame", "int32"))
    return frame.astype({name: kind for name, kind in whole if name in table.column_names})


def known_columns(columns: Sequence[str] | None) -> list[str]:
    """The columns, all by default; raises UsageError for one that the score table does not have."""
    wanted = list(columns) if columns is not None else SCORES.names
    unknown = [name for name in wanted if name not in SCORES.names]
    if unknown:
        raise UsageError(
            "Columns must be those of the score table.", ", ".join(unknown), f"Known are {', '.join(SCORES.names)}."
        )
    return wanted


def open_heatmap(run: str, reference: str) -> Heatmap:
    """The heatmap that a row's `heatmap` column names, by a single ranged read.

    Raises:
        UsageError: the reference is malformed.
        JobError: the shard is missing, shorter than the reference says, or damaged.
    """
    shard, offset, length = parse_reference(reference)
    uri = storage.join(place(run), shard)
    try:
        data = storage.fetch_range(uri, offset, length)
    except storage.NotFound as error:
        raise JobError(f"The heatmap shard {uri} is gone.", "Restore it, or scan again.") from error
    return decode_png(data)
