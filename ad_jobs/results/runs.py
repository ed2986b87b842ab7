"""Several finished runs as one: a run with those it was made since, or any runs of one archive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from ad_jobs.errors import UsageError
from ad_jobs.results.handle import Run, open_run
from ad_jobs.results.lineage import lineage
from ad_jobs.results.newest import as_one
from ad_jobs.results.read import Heatmap, known_columns, scores_of
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.values import place


def open_runs(runs: str | PathLike[str] | Sequence[str | PathLike[str]]) -> Runs:
    """Runs read as one table: of an object and a model, the rows of the newest run that has it.

    Args:
        runs: one run, which comes with those it was made since (`scan --since`); or several, these and no others, of
            which the one that was started last is the newest.

    Raises:
        UsageError: not a run, an unfinished one, none at all, or runs that name their objects differently; a parent
            that is gone, or another run by now.
    """
    if isinstance(runs, str | PathLike):
        return Runs([Run(run.uri, run.record) for run in lineage(place(runs))])
    return Runs([open_run(run) for run in runs])


class Runs:
    """Finished runs, from the oldest to the newest. They are read when they are asked for."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._table = as_one([ScoreTable(run.uri, run.record) for run in runs])
        self.runs = tuple(Run(table.uri, table.record) for table in self._table.tables)

    def __repr__(self) -> str:
        return f"Runs({', '.join(run.uri for run in self.runs)})"

    def scores(self, *, columns: Sequence[str] | None = None, where: str | None = None) -> pd.DataFrame:
        """The table of all runs, ordered by URI, frame and model; an object_id is that of the row's own run.

        Args:
            columns: some of the table's columns, in the wanted order; all by default.
            where: an SQL condition over the table (DuckDB's dialect), which sees the newest rows alone.

        Raises:
            UsageError: an unknown column, or no condition.
            JobError: a part that a record lists is missing, or has another number of rows.
        """
        return scores_of(self._table, columns, where)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The same rows as a stream, in no order, for a table that memory does not hold.

        Raises:
            UsageError: an unknown column.
            JobError: as `scores`.
        """
        return self._table.batches(known_columns(columns))

    def heatmap(self, row: Mapping[str, Any] | pd.Series[Any]) -> Heatmap:
        """`Run.heatmap` of the run that a row is of."""
        return self._of(row).heatmap(row)

    def image(self, row: Mapping[str, Any] | pd.Series[Any]) -> NDArray[np.uint8]:
        """`Run.image` of the run that a row is of."""
        return self._of(row).image(row)

    def _of(self, row: Any) -> Run:
        run_id = row.get("run_id") if not isinstance(row, pd.DataFrame) else None
        for run in self.runs:
            if run.record.run_id == run_id:
                return run
        known = ", ".join(run.record.run_id for run in self.runs)
        raise UsageError("A row is of one of the runs, by its column run_id.", run_id, f"They are {known}.")
