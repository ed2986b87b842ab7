"""Labels of images, and how they meet the rows of a run."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from ad_jobs.archive.identifiers import is_hashed, read_identifiers
from ad_jobs.archive.sources import resolve
from ad_jobs.errors import UsageError
from ad_jobs.results.read import as_pandas
from ad_jobs.results.run import RunRecord
from ad_jobs.results.score_table import ORDER, ScoreTable
from ad_jobs.schema import FAILED, SCORED, SKIPPED
from cluster import storage
from cluster.counting import counted

# The status of a label whose image is not in the run.
MISSING = "missing"
COLUMNS = ("image", "anomalous", "mask", "frame", "group", "site")
# Of the score table; by the first three rows are ordered.
_COLUMNS = [*ORDER, "uri", "status", "score", "flagged", "heatmap"]
_SHAPE = "Write a CSV with the columns image, anomalous (0 or 1) and, if known, mask, frame, group, site."


class Labels(NamedTuple):
    """A labels file; `table` has uri, anomalous (bool), mask (URI or None), frame (Int64), group, site (or None)."""

    uri: str
    sha256: str
    table: pd.DataFrame


class Joined(NamedTuple):
    """Labels beside what a run found under one model.

    `table` has the labels' columns and status (scored, failed, skipped or missing), score, flagged, and heatmaps: the
    references of the label's frames, None among them where none was kept.
    `unlabelled` counts objects without a label.
    """

    table: pd.DataFrame
    unlabelled: int


def read_labels(uri: str) -> Labels:
    """The labels of a CSV; relative image and mask paths are resolved against its folder.

    Raises:
        UsageError: no such file, no CSV, a column is missing, a value is not of its kind, an image is labelled twice.
    """
    try:
        data = storage.read_bytes(uri)
    except storage.StorageError as error:
        raise UsageError("LABELS must be a CSV that can be read.", error, "Check the path.") from error
    try:
        # As text throughout: 007.png is a name, and an empty cell is an empty cell.
        raw = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UsageError("LABELS must be a CSV in UTF-8.", f"{uri}: {error}", _SHAPE) from error
    raw.columns = raw.columns.str.strip()
    missing = [name for name in COLUMNS[:2] if name not in raw.columns]
    if missing:
        found = ", ".join(map(str, raw.columns))
        raise UsageError(f"LABELS needs the column {missing[0]}.", f"{uri} with columns {found}", _SHAPE)
    if raw.empty:
        raise UsageError("LABELS must label at least one image.", uri, _SHAPE)
    for name in COLUMNS:
        raw[name] = raw[name].fillna("").str.strip() if name in raw.columns else ""
    table = pd.DataFrame(
        {
            # A hash names no place.
            "uri": [image if is_hashed(image) else resolve(uri, image) for image in raw["image"]],
            "anomalous": _checked(raw["anomalous"], uri, "anomalous must be 0 or 1", "[01]") == "1",
            "mask": pd.Series([resolve(uri, m) if m else None for m in raw["mask"]], dtype=object),
            "frame": pd.to_numeric(
                _checked(raw["frame"], uri, "frame must be a whole number from 0 up, or empty", "[0-9]{0,9}")
            ).astype("Int64"),
            **{name: pd.Series([value or None for value in raw[name]], dtype=object) for name in ("group", "site")},
        }
    )
    _checked(raw["image"], uri, "image must not be empty", "(?s).+")
    twice = table.duplicated(["uri", "frame"])
    if twice.any():
        raise UsageError(
            "An image (or a frame of it) must be labelled once.",
            f"{int(twice.sum())} repeated, such as {table['uri'][twice].iloc[0]}",
            "Remove the repeated lines; for frames of one object fill the column frame.",
        )
    return Labels(uri, hashlib.sha256(data).hexdigest(), table)


def _checked(column: pd.Series[str], uri: str, rule: str, pattern: str) -> pd.Series[str]:
    wrong = ~column.str.fullmatch(pattern)
    if wrong.any():
        line = int(np.flatnonzero(wrong)[0])
        # Line 1 is the header.
        raise UsageError(f"In LABELS, {rule}.", f"{column.iloc[line]!r} in line {line + 2} of {uri}", _SHAPE)
    return column


def hidden(labels: Labels, record: RunRecord, key: Path) -> Labels:
    """Labels that name images as the run does, whose identifiers were hashed with the key in a file.

    Raises:
        UsageError: a run without hashed identifiers; a file that cannot be read.
    """
    if record.config.get("identifiers") != "hashed":
        raise UsageError("--identifiers-key is for a run with hashed identifiers.", key, "Leave it out.")
    identifiers = read_identifiers("hashed", key)
    names = [name if is_hashed(name) else identifiers.uri(name) for name in labels.table["uri"]]
    return labels._replace(table=labels.table.assign(uri=names))


def labelled_rows(table: ScoreTable, labels: Labels) -> pd.DataFrame:
    """The rows of the objects that labels name, ordered by object, frame and model; the others are not kept.

    Raises:
        UsageError: no label is about an object of the run.
        JobError: a part of the table is missing or damaged.
    """
    known = pa.table({"label": labels.table["uri"].unique()})
    rows = table.query("SELECT * FROM scores SEMI JOIN labels ON uri = label ORDER BY ALL", _COLUMNS, labels=known)
    if not rows.num_rows:
        some = next((batch["uri"][0].as_py() for batch in table.batches(["uri"]) if batch.num_rows), "no rows")
        raise UsageError(
            "LABELS must name images of the run, by the same path or URI.",
            f"none of {len(labels.table)} is among the run's {counted(table.record.counts.objects, 'object')} "
            f"(labels: {labels.table['uri'].iloc[0]}; run: {some})",
            "Relative paths are resolved against the labels file's folder. "
            "Write the image column as the run's column uri. "
            "Of a run with hashed identifiers give the key, too: --identifiers-key FILE."
            + ("" if table.record.manifest.where is None else " The run's --where may have left them out.")
            + ("" if table.record.parent is None else " The run that it was made --since may have them."),
        )
    return as_pandas(rows)


def join(labels: Labels, rows: pd.DataFrame, objects: int) -> Joined:
    """Each label beside its object's outcome under one model.

    A label with a frame takes that frame's row.
    One without takes the whole object: its highest score over all frames, flagged if any frame is.

    Args:
        labels: the labels.
        rows: one model's rows with uri, frame, status, score, flagged, heatmap; of labelled objects at least.
        objects: of the run, labelled or not.
    """
    by_object = _objects(rows)
    table = labels.table
    of_object = by_object.reindex(table["uri"]).set_axis(table.index)
    by_frame = rows.set_index(["uri", "frame"])[["status", "score", "flagged", "heatmap"]]
    key = pd.MultiIndex.from_arrays([table["uri"], table["frame"].fillna(-1).astype("int64")])
    of_frame = by_frame.reindex(key).set_axis(table.index)
    whole = table["frame"].isna()
    # An object that failed whole stands at frame 0 only; its other frames failed with it.
    lost = of_frame["status"].isna() & (of_object["status"] != SCORED)
    status = of_object["status"].where(whole | lost, of_frame["status"])
    frames = [[reference] for reference in _or_none(of_frame["heatmap"])]
    heatmaps = [
        o if w and isinstance(o, list) else f for w, o, f in zip(whole, of_object["heatmaps"], frames, strict=True)
    ]
    joined = table.assign(
        status=status.fillna(MISSING),
        score=of_object["score"].where(whole, of_frame["score"]).astype("float64"),
        flagged=of_object["flagged"].where(whole, of_frame["flagged"]),
        heatmaps=pd.Series(heatmaps, index=table.index, dtype=object),
    )
    return Joined(joined, objects - int(by_object.index.isin(table["uri"]).sum()))


def _objects(rows: pd.DataFrame) -> pd.DataFrame:
    """One row an object: scored if any frame is, its highest score, the references of its scored frames."""
    scored = rows[rows["status"] == SCORED]
    best = scored.groupby("uri", sort=False).agg(score=("score", "max"), flagged=("flagged", "max"))
    references = pd.Series(_or_none(scored["heatmap"]), index=scored.index, dtype=object)
    best["heatmaps"] = references.groupby(scored["uri"], sort=False).agg(list)
    best_first = (SCORED, FAILED, SKIPPED)
    rank = rows["status"].map({status: place for place, status in enumerate(best_first)})
    objects = rank.groupby(rows["uri"], sort=False).min().map(dict(enumerate(best_first))).to_frame("status")
    return objects.join(best)


def _or_none(column: pd.Series[str]) -> list[str | None]:
    return [value if isinstance(value, str) else None for value in column]
