"""Does every row of the table belong to the run: its object, its name, its model, its threshold, its flag?"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd

from ad_jobs.errors import RetroscanError
from ad_jobs.results.count import COLUMNS as COUNTED
from ad_jobs.results.count import count_table
from ad_jobs.results.heatmaps import member_name, parse_reference
from ad_jobs.results.members import MARKS, member_mark
from ad_jobs.results.score_table import CopiedTable
from ad_jobs.schema import SCORED, is_flagged
from ad_jobs.verifying.run_archive import RunArchive
from cluster import storage
from cluster.counting import counted

_COLUMNS = ["object_id", "frame", "uri", "status", "score", "threshold", "flagged", "heatmap", "model_id"]
# What the checks read.
COLUMNS = list(dict.fromkeys([*_COLUMNS, *COUNTED]))


def check_counts(table: CopiedTable, archive: RunArchive) -> list[str]:
    """Whether every selected object is there exactly once under every model, and as often as the record says."""
    record = table.record
    called = f"manifest {archive.manifest.uri}"
    try:
        selection = archive.selection()
    except (RetroscanError, storage.StorageError) as error:
        return [f"{called}: {error}"]
    listed = archive.manifest.objects
    objects = listed if selection is None else len(selection.ids)
    if objects != record.manifest.objects:
        return [f"{called}: {counted(objects, 'object')}; the run had {record.manifest.objects}"]
    left_out = {
        "listed": listed,
        "undecided": 0 if selection is None else selection.undecided,
        "already": 0 if selection is None else selection.already,
    }
    found = count_table(
        [str(table.path)],
        objects=objects,
        run_id=record.run_id,
        model_ids=[model.model_id for model in record.models],
        selected=None if selection is None else selection.ids,
    )
    differences = list(found.complaints)
    for name, count in left_out.items():
        # Earlier versions did not write it.
        if (recorded := getattr(record.manifest, name)) not in (None, count):
            differences.append(f"{called}: {counted(count, 'object')} {name}; run.json has {recorded}")
    if record.parent is not None and selection is not None:
        again = {
            "failed there": (selection.retried, record.parent.retried),
            "were out of a domain there that is wider now": (selection.widened, record.parent.widened),
        }
        differences += [
            f"parent {record.parent.uri}: {now} of the objects {what}; run.json has {then}"
            for what, (now, then) in again.items()
            if now != then
        ]
    if found.counts != record.counts:
        differences.append(f"counts {found.counts}; run.json has {record.counts}")
    return differences


def check_rows(table: CopiedTable, archive: RunArchive | None, marks: dict[str, int]) -> list[str]:
    """How rows contradict the manifest, their model, their heatmaps, or themselves.

    Args:
        table: the run's, with COLUMNS.
        archive: what it was made of; None where there is no manifest.
        marks: of each heatmap shard, the sum of its `member_mark`s.
    """
    record = table.record
    thresholds = {model.model_id: np.float32(model.threshold) for model in record.models}
    several = len(record.models) > 1
    referred = dict.fromkeys(marks, 0)
    found: Counter[str] = Counter()
    first: dict[str, int] = {}
    for batch in table.batches(_COLUMNS):
        rows = batch.to_pandas()
        for what, wrong in _wrong(rows, thresholds, archive).items():
            if wrong.any():
                found[what] += int(wrong.sum())
                first.setdefault(what, int(rows["object_id"][wrong].iloc[0]))
        _mark(rows, several, referred)
    differences = [f"{counted(count, 'row')}: {what} (object {first[what]} first)" for what, count in found.items()]
    other = sorted(name for name in referred if referred[name] % MARKS != marks.get(name))
    return differences + [f"{name}: the rows refer to other heatmaps than it holds" for name in other]


def _mark(rows: pd.DataFrame, several: bool, referred: dict[str, int]) -> None:
    """Add the marks of the heatmaps that rows refer to, shard by shard."""
    kept = rows[rows["heatmap"].notna()]
    for object_id, frame, model_id, text in kept[["object_id", "frame", "model_id", "heatmap"]].itertuples(index=False):
        try:
            shard, offset, length = parse_reference(text)
        except RetroscanError:
            shard, offset, length = text, 0, 0
        member = member_name(object_id, frame, model_id if several else None)
        referred[shard] = referred.get(shard, 0) + member_mark(member, offset, length)


def _wrong(rows: pd.DataFrame, thresholds: dict[str, np.float32], archive: RunArchive | None) -> dict[str, pd.Series]:
    """Rows that are wrong, by what is wrong with them."""
    scored = rows["status"] == SCORED
    wanted = rows["model_id"].map(thresholds).astype("float32")
    flagged = is_flagged(rows["score"], rows["threshold"])
    checks = {
        "flagged is not score > threshold": scored & (rows["flagged"] != flagged),
        "a score or a flag without having been scored": ~scored & (rows["score"].notna() | rows["flagged"].notna()),
        "scored, and without a finite score": scored & ~np.isfinite(rows["score"]),
        "another threshold than the model's": rows["threshold"] != wanted,
    }
    if archive is not None and (names := archive.names(rows["object_id"].to_numpy())) is not None:
        checks["uri is not what the manifest has"] = rows["uri"] != pd.Series(names, index=rows.index)
    return checks
