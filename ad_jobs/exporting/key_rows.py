"""The frames of a run that reviewers found abnormal, as rows to hand on."""

from __future__ import annotations

from ad_jobs.exporting.originals import Row
from ad_jobs.exporting.selection import SELECTED, Selection
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.reviewing.verdicts import check_content, read_verdicts
from ad_jobs.schema import ACCEPTED, SUPPLEMENTED

# Whatever else reviewers said of it, one of these makes a frame a key object.
ABNORMAL = (ACCEPTED, SUPPLEMENTED)


def key_rows(selection: Selection) -> list[Row]:
    """The frames that a reviewer accepted or supplemented, one row each, study by study.

    With a decision those that were looked at by it. `noted_at` is when the last of these verdicts was noted.

    Raises:
        JobError: a file of verdicts, or a part of the run, is damaged.
    """
    verdicts = read_verdicts(selection.run_uri)
    verdicts = verdicts[verdicts["verdict"].isin(ABNORMAL)]
    if selection.decision is not None:
        verdicts = verdicts[verdicts["decision_id"] == selection.decision["decision_id"]]
    table = ScoreTable(selection.run_uri, selection.record)
    check_content(verdicts, table)
    objects = table.of_objects(verdicts["object_id"].unique().tolist()).select(["object_id", "study_uid", "uri"])
    # Where an object lies is the run's word, and not a verdict's.
    known = {row["object_id"]: row for row in objects.to_pylist()}
    found = []
    groups = [said for _, said in verdicts.groupby(["object_id", "frame"])]
    for said in groups:
        last = said.sort_values("noted_at").iloc[-1]
        object_id = int(last["object_id"])
        found.append(
            {
                "object_id": object_id,
                "frame": int(last["frame"]),
                "uri": known[object_id]["uri"],
                "content_sha256": last["content_sha256"],
                "study_uid": known[object_id]["study_uid"],
                "noted_at": last["noted_at"].to_pydatetime(),
                SELECTED: len(groups),
                **dict.fromkeys(("model_id", "score", "threshold", "flagged")),
            }
        )
    return sorted(
        found, key=lambda row: (row["study_uid"] or f"object {row['object_id']}", row["object_id"], row["frame"])
    )
