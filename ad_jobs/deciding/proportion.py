"""Does a run flag far more than its thresholds promised? What it says of a scan that its numbers look wrong.

A threshold promises something of normal images alone, and how many of an archive are abnormal nobody knows.
So that only a share is told that no likely number of abnormal images explains: more than MOST of all images, or FACTOR
times the rate that the threshold had on held-out normals, and more than chance allows for the highest rate that these
do not rule out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from ad_jobs.deciding.cells import by_model
from ad_jobs.deciding.normals import held_out_normals
from ad_jobs.results.run import ModelRef, RunRecord
from ad_jobs.results.score_table import Rows
from ad_jobs.schema import SCORED
from ad_jobs.scoring.calibration import judged_by
from ad_jobs.scoring.thresholds import clopper_pearson
from cluster.counting import counted

FACTOR, MOST = 10.0, 0.5
# Of so many flagged by chance.
SIGNIFICANCE = 1e-6
# A group is named if this share of the flagged is of it, and of it this many times as large a share is flagged as of
# the others.
MOSTLY, CONTRAST = 0.5, 2.0

COLUMNS = ("model_id", "status", "flagged", "modality", "manufacturer", "transfer_syntax")
# A transfer syntax is a UID of DICOM, or the name of a picture's format.
_BY_GROUP = """
    SELECT "by", value, count(*) AS rows, count(*) FILTER (flagged) AS flagged FROM (
        SELECT flagged, unnest(['modality', 'manufacturer', 'kind']) AS "by", unnest([
            modality, manufacturer, CASE WHEN transfer_syntax LIKE '%.%' THEN 'dicom' ELSE transfer_syntax END
        ]) AS value FROM scores WHERE status = $1 AND model_id = $2)
    WHERE value IS NOT NULL GROUP BY ALL ORDER BY ALL
"""


class Group(NamedTuple):
    """Images that share a value of a column, and how many of them are flagged."""

    by: str
    value: str
    rows: int
    flagged: int


class OutOfProportion(NamedTuple):
    """A model whose flags are out of all proportion: how many, of how many, and what its threshold promised.

    `promised` is the share of held-out normals above the threshold, or the rate that it was set for where that is
    higher; `promised_at_most` the upper end of its exact 95 % interval. `group` holds most of the flagged.
    """

    model_id: str
    uri: str
    rows: int
    flagged: int
    promised: float
    promised_at_most: float
    group: Group | None

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**self._asdict(), "group": None if self.group is None else self.group._asdict(), "text": self.text}

    @property
    def text(self) -> str:
        """What is wrong, where, and what to do."""
        return (
            f"OUT OF PROPORTION: model {self.model_id} flags {self.flagged / self.rows:.0%} of "
            f"{counted(self.rows, 'image', spec=',')}, and of normal ones its threshold promised {self.promised:.2%} "
            f"({self.promised_at_most:.2%} at most). {self._where} If so many are not abnormal, they are another kind "
            f"than those it was calibrated on: {self._remedy}"
        )

    @property
    def _where(self) -> str:
        if self.group is None:
            return "No modality, maker or kind of file stands out."
        others, hot = self.rows - self.group.rows, self.flagged - self.group.flagged
        return (
            f"Most of them are of {self.group.by} {self.group.value}: {self.group.flagged:,} of {self.group.rows:,} "
            f"flagged, of the others {hot:,} of {others:,}."
        )

    @property
    def _remedy(self) -> str:
        calibrate = f"calibrate on normals like them (retroscan calibrate {self.uri} --normal SOURCE --max-fpr 0.01)"
        if self.group is None:
            return f"{calibrate}, or fit on them."
        quoted = self.group.value.replace("'", "''")
        return f"{calibrate}, or scan them apart (--where \"{self.group.by} = '{quoted}'\") with a model of their own."


def out_of_proportion(table: Rows, run_uri: str, record: RunRecord) -> list[OutOfProportion]:
    """The models of a run whose flags are out of all proportion; of one without held-out scores nothing is told.

    Raises:
        UsageError: held-out scores are gone, or were changed.
        JobError: as `Rows.batches`.
    """
    # Without flags there is nothing to read.
    if not record.counts.flagged:
        return []
    rows = {model.model_id: 0 for model in record.models}
    flagged = dict(rows)
    for batch in table.batches(["model_id", "status", "flagged"]):
        for model_id, of_model in by_model(batch, rows):
            rows[model_id] += of_model.num_rows
            flagged[model_id] += pc.sum(of_model["flagged"]).as_py() or 0
    found = []
    for model in record.models:
        promised = _promised(run_uri, model)
        if promised is not None and _is_out(flagged[model.model_id], rows[model.model_id], *promised):
            group = _most_of_them(table, model.model_id, rows[model.model_id], flagged[model.model_id])
            counts = rows[model.model_id], flagged[model.model_id]
            found.append(OutOfProportion(model.model_id, model.uri, *counts, *promised, group))
    return found


def _promised(run_uri: str, model: ModelRef) -> tuple[float, float] | None:
    """The rate of a model's threshold among normals, and what it is at most; None where nothing tells."""
    calibration = judged_by(run_uri, model)
    target = 0.0 if calibration is None or calibration.rule != "max_fpr" else calibration.target
    if (normals := held_out_normals(run_uri, model)) is not None:
        hits = int((normals.scores > np.float32(model.threshold)).sum())
        return max(target, hits / len(normals.scores)), clopper_pearson(hits, len(normals.scores))[1]
    if calibration is None or calibration.rule != "max_fpr":
        return None
    return max(target, calibration.rate), calibration.rate_high


def _is_out(flagged: int, rows: int, promised: float, at_most: float) -> bool:
    from scipy.special import bdtrc

    if not rows or flagged / rows <= min(max(FACTOR * promised, at_most), MOST):
        return False
    # The probability of so many, or more.
    return bool(at_most < 1 and bdtrc(flagged - 1, rows, at_most) < SIGNIFICANCE)


def _most_of_them(table: Rows, model_id: str, rows: int, flagged: int) -> Group | None:
    """The group that holds most of the flagged, and far more than its share; None where none stands out."""
    groups = [Group(**row) for row in table.query(_BY_GROUP, COLUMNS, [SCORED, model_id]).to_pylist()]

    def others(group: Group) -> float:
        return (flagged - group.flagged) / (rows - group.rows) if rows > group.rows else np.inf

    standing_out = [
        group
        for group in groups
        if group.flagged > MOSTLY * flagged and group.flagged / group.rows > CONTRAST * others(group)
    ]
    # Of several the one that says most: whose others are flagged least.
    return min(standing_out, key=others, default=None)
