"""What reviewers said of a run's frames, as labels of these."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import pandas as pd

from ad_jobs.errors import UsageError
from ad_jobs.evaluation.labels import Labels
from ad_jobs.results.run import read_record
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.reviewing.verdicts import FOLDER, check_content, read_verdicts
from ad_jobs.schema import REJECTED
from cluster import storage
from cluster.counting import counted


class Reviewed(NamedTuple):
    """Frames by what was said of them: object_id, frame, uri, content_sha256, anomalous; and how many are disputed.

    A frame is anomalous that was accepted or supplemented, and normal that was rejected.
    Of a disputed one reviewers say both; it is left out of `frames`.
    """

    frames: pd.DataFrame
    disputed: pd.DataFrame
    sha256: str


def reviewed(run_uri: str) -> Reviewed:
    """The frames of a run that have standing verdicts.

    Raises:
        UsageError: nobody has reviewed the run.
        JobError: a file of verdicts is damaged, or one is on something else than the run scored.
    """
    verdicts = read_verdicts(run_uri)
    if verdicts.empty:
        raise UsageError(
            "What reviewers said of a run stands in its folder reviews/.",
            f"{run_uri}, without a verdict",
            "Review it with: retroscan review RUN.",
        )
    check_content(verdicts, ScoreTable(run_uri, read_record(run_uri)))
    digest = hashlib.sha256("\n".join(sorted(verdicts["verdict_id"])).encode()).hexdigest()
    said = verdicts.assign(anomalous=verdicts["verdict"] != REJECTED)
    frames = said.groupby(["object_id", "frame"], as_index=False).agg(
        uri=("uri", "first"),
        content_sha256=("content_sha256", "first"),
        anomalous=("anomalous", "max"),
        unanimous=("anomalous", lambda values: values.nunique() == 1),
    )
    agreed = frames["unanimous"].astype(bool)
    kept = frames.drop(columns="unanimous")
    return Reviewed(kept[agreed].reset_index(drop=True), kept[~agreed].reset_index(drop=True), digest)


def review_labels(run_uri: str) -> tuple[Labels, int]:
    """Labels of the frames that reviewers agree on; and of how many they do not.

    Raises:
        UsageError: nobody has reviewed the run, or reviewers agree on nothing.
        JobError: a file of verdicts is damaged.
    """
    found = reviewed(run_uri)
    if found.frames.empty:
        raise UsageError(
            "Labels are verdicts on which reviewers agree.",
            f"{counted(len(found.disputed), 'frame')} of which both is said",
            "Let reviewers settle them, or give --labels LABELS.csv.",
        )
    table = pd.DataFrame(
        {
            "uri": found.frames["uri"].astype(object),
            "anomalous": found.frames["anomalous"].astype(bool),
            "mask": pd.Series([None] * len(found.frames), dtype=object),
            "frame": found.frames["frame"].astype("Int64"),
            **{name: pd.Series([None] * len(found.frames), dtype=object) for name in ("group", "site")},
        }
    )
    return Labels(storage.join(run_uri, FOLDER), found.sha256, table), len(found.disputed)
