"""A finished run as an object: its record, its table in pandas or as a dataset, and a row's heatmap and picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
from numpy.typing import NDArray

from ad_jobs.archive import objects
from ad_jobs.errors import UsageError
from ad_jobs.images.guard import of_this_process
from ad_jobs.images.policy import MAX_SIDE_PX, Limits, PixelPolicy
from ad_jobs.results.read import Heatmap, open_heatmap, scores_of
from ad_jobs.results.run import ModelRef, RunRecord, read_record
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.values import place
from cluster.counting import counted


def open_run(run: str | PathLike[str]) -> Run:
    """The finished run in a folder, local or s3://.

    >>> open_run("run")
    Run('.../run': 19 objects, 19 rows, ... flagged)

    Raises:
        UsageError: not a run, or an unfinished one.
    """
    uri = place(run)
    return Run(uri, read_record(uri))


class Run:
    """A finished run. It is read when it is asked for, from the parts that its record lists and no others."""

    def __init__(self, uri: str, record: RunRecord) -> None:
        self.uri = uri
        # What run.json says: what was scanned, with what, the counts, the parts with their digests.
        self.record = record

    def __repr__(self) -> str:
        counts = self.record.counts
        objects, rows = counted(counts.objects, "object"), counted(counts.rows, "row")
        return f"Run({self.uri!r}: {objects}, {rows}, {counts.flagged} flagged)"

    def scores(self, *, columns: Sequence[str] | None = None, where: str | None = None) -> pd.DataFrame:
        """`read_scores` of this run.

        >>> open_run("run").scores(columns=["object_id", "error_code"], where="status = 'failed'")
           object_id error_code
        0         18  truncated

        Raises:
            UsageError: an unknown column, or no condition.
            JobError: a part that the record lists is missing, or has another number of rows.
        """
        return scores_of(ScoreTable(self.uri, self.record), columns, where)

    def dataset(self) -> ds.Dataset:
        """The score table as a pyarrow dataset, for whoever streams or filters it: schema.SCORES, unordered.

        Raises:
            JobError: a part that the record lists is missing, or the parts have another number of rows.
        """
        return ScoreTable(self.uri, self.record).dataset()

    def heatmap(self, row: Mapping[str, Any] | pd.Series[Any]) -> Heatmap:
        """The heatmap of a row of `scores`: float32 [H, W] in [0, 1] on the run's global scale, by one ranged read.

        Raises:
            UsageError: the row's heatmap was not kept.
            JobError: the shard is missing or damaged.
        """
        reference = _one(row, "heatmap")["heatmap"]
        if pd.isna(reference):
            raise UsageError(
                "A row has a heatmap if its image was scored and the scan kept it.",
                f"object {row.get('object_id')}, frame {row.get('frame')}, without one",
                "Scan with --heatmaps all to have one for every scored image.",
            )
        return open_heatmap(self.uri, str(reference))

    def image(self, row: Mapping[str, Any] | pd.Series[Any]) -> NDArray[np.uint8]:
        """The frame of a row of `scores` as a viewer shows it, uint8 [rows, columns, 3].

        Grey values are windowed by the pixel policy of the row's model.

        Raises:
            UsageError: the table's URIs are hashed.
            StorageError: the object cannot be fetched.
            ImageError: it cannot be decoded within the run's limits, or its container cannot be read.
        """
        uri = str(_one(row, "uri", "frame", "model_id")["uri"])
        if self.record.config.get("identifiers") == "hashed":
            raise UsageError(
                "An image is fetched by its URI.", f"{uri}, which is hashed", "Look its object_id up in the manifest."
            )
        model = self._model(str(row["model_id"]))
        limits = Limits.model_validate(self.record.config.get("limits", {}))
        data = objects.fetch(uri, limits.max_bytes).data
        policy = PixelPolicy.model_validate(model.policy)
        return of_this_process().preview(data, int(row["frame"]), policy, limits, max_side=MAX_SIDE_PX)

    def _model(self, model_id: str) -> ModelRef:
        for model in self.record.models:
            if model.model_id == model_id:
                return model
        known = ", ".join(model.model_id for model in self.record.models)
        raise UsageError("A row is of one of the run's models.", model_id, f"They are {known}.")


def _one(row: Any, *names: str) -> Any:
    """The row, if it is one and has these columns; raises UsageError otherwise."""
    if isinstance(row, pd.DataFrame):
        raise UsageError(
            "A heatmap or an image is of one row.", f"a table of {len(row)}", "Take one, for example with rows.iloc[0]."
        )
    if missing := [name for name in names if name not in row]:
        raise UsageError(
            f"A row has the columns {', '.join(names)}.", f"one without {', '.join(missing)}", "Read them by `scores`."
        )
    return row
