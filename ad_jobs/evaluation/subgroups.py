"""What a run found and missed in parts of the labelled images: by modality, maker, site, age band and sex.

A detector that does well on the whole may miss what is rare in it: small groups have wide intervals, which are exact.
Of fewer than LEAST images nothing is told by itself: who they are could be, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ad_jobs.evaluation import ranking
from ad_jobs.evaluation.intervals import Estimate, estimate, rate, resample
from ad_jobs.evaluation.labels import Labels
from ad_jobs.results.described import described
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.schema import SCORED

# What groups are formed by: of the table, and of the run's manifest where it has them (index --headers).
OF_THE_TABLE, OF_THE_MANIFEST = ("modality", "manufacturer"), ("age_band", "sex", "site")
# Smaller groups are taken together, and hidden where together they are not more.
LEAST = 5
# Of the bootstrap of an AUROC, which is given where both classes have LEAST images.
REPLICATES = 200
_OF_OBJECTS = f"""
    SELECT uri, min(object_id) AS object_id, {", ".join(f"any_value({name}) AS {name}" for name in OF_THE_TABLE)}
    FROM scores SEMI JOIN labels ON uri = label GROUP BY uri
"""


def attributes(table: ScoreTable, labels: Labels) -> pd.DataFrame:
    """Of each labelled object of the run what groups are formed by, as far as it is known; by its URI.

    Labels that name sites name all of them: in the words of two sources one site would be two.

    Raises:
        JobError: a part of the table, or of the manifest, is missing or damaged.
    """
    known = pa.table({"label": labels.table["uri"].unique()})
    found = table.query(_OF_OBJECTS, ["object_id", "uri", *OF_THE_TABLE], labels=known)
    frame: pd.DataFrame = found.to_pandas()
    stream = described(table.uri, table.record, OF_THE_MANIFEST)
    if stream is not None:
        ids = found["object_id"].combine_chunks()
        kept = [batch.filter(pc.is_in(batch["object_id"], ids)) for batch in stream.batches]
        frame = frame.merge(pa.Table.from_batches(kept, stream.schema).to_pandas(), on="object_id", how="left")
    frame = frame.drop(columns="object_id").set_index("uri")
    sites = labels.table.dropna(subset=["site"]).drop_duplicates("uri").set_index("uri")["site"]
    return frame if sites.empty else frame.drop(columns="site", errors="ignore").join(sites)


def subgroups(
    judged: pd.DataFrame, by: pd.DataFrame, groups: Sequence[str], *, seed: int, bootstrap: int
) -> list[dict[str, Any]]:
    """A row for each group of the scored images, in the order of the attributes and their values.

    Each has `by` and `value`, of how many images (`n_normal`, `n_anomalous`), how many of them are flagged (`found`,
    `false_alarms`), `sensitivity` and `specificity` with exact intervals, and `image_auroc` where there are enough.
    `value` is null of the small ones together, of which `merged` says how many there are; all else is null, too, where
    they are fewer than LEAST images.

    Args:
        judged: labels beside what a run found, with uri, anomalous, status, score and flagged.
        by: `attributes`.
        groups: what each image is drawn with, for the bootstrap.
        seed: of the bootstrap.
        bootstrap: replicates, of which REPLICATES are taken at most; 0 for no intervals of AUROC.
    """
    scored = (judged["status"] == SCORED).to_numpy()
    judged, names = judged[scored], np.asarray(groups, dtype=object)[scored]
    found = []
    for attribute in by.columns:
        values = by[attribute].reindex(judged["uri"]).to_numpy()
        for value, merged, rows in _parts(values):
            shown = {"by": attribute, "value": value, "merged": merged}
            found.append(shown | _told(judged[rows], names[rows], seed, min(REPLICATES, bootstrap)))
    return found


def _parts(values: npt.NDArray[Any]) -> Iterator[tuple[str | None, int | None, npt.NDArray[np.bool_]]]:
    """Each value with the rows that have it; at last the small ones, and how many these are."""
    counts = pd.Series(values).value_counts().sort_index()
    for value in counts.index[counts >= LEAST]:
        yield str(value), None, values == value
    small = counts.index[counts < LEAST]
    if len(small):
        yield None, len(small), np.isin(values.astype(str), small.astype(str)) & pd.notna(values)


def _told(judged: pd.DataFrame, groups: npt.NDArray[Any], seed: int, replicates: int) -> dict[str, Any]:
    nothing = Estimate(value=None, low=None, high=None)
    if len(judged) < LEAST:
        counts = dict.fromkeys(("n_normal", "n_anomalous", "found", "false_alarms"))
        return {**counts, "sensitivity": nothing, "specificity": nothing, "image_auroc": nothing}
    anomalous, flagged = judged["anomalous"].to_numpy(dtype=bool), judged["flagged"].to_numpy(dtype=bool)
    n_anomalous, n_normal = int(anomalous.sum()), int((~anomalous).sum())
    found, false_alarms = int((flagged & anomalous).sum()), int((flagged & ~anomalous).sum())
    enough = min(n_anomalous, n_normal) >= LEAST
    scores = judged["score"].to_numpy(dtype=np.float64)
    return {
        "n_normal": n_normal,
        "n_anomalous": n_anomalous,
        "found": found,
        "false_alarms": false_alarms,
        "sensitivity": rate(found, n_anomalous),
        "specificity": rate(n_normal - false_alarms, n_normal),
        "image_auroc": _auroc(scores, anomalous, groups.tolist(), seed, replicates) if enough else nothing,
    }


def _auroc(
    scores: npt.NDArray[np.float64], anomalous: npt.NDArray[np.bool_], groups: list[str], seed: int, replicates: int
) -> Estimate:
    distinct, place = np.unique(scores, return_inverse=True)
    drawn = [
        ranking.auroc(ranking.count(place, anomalous, weights, distinct.size))
        for weights in resample(anomalous, groups, seed=seed, replicates=replicates)
    ]
    whole = ranking.auroc(ranking.histograms(scores, anomalous))
    return estimate(whole, [value for value in drawn if value is not None])
