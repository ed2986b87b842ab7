"""Which columns a condition reads: those it names, and all of them where it does not say."""

from __future__ import annotations

import pytest

from ad_jobs.archive.condition import columns_in

NAMES = ["object_id", "score", "flagged", "modality", "fetch_ms", "decode_ms"]


@pytest.mark.parametrize(
    ("where", "read"),
    [
        ("flagged", ["flagged"]),
        ("FLAGGED AND scores.Score > 0.5", ["score", "flagged"]),
        ("\"modality\" = 'score' OR modality IS NULL", ["modality"]),
        ("object_id % 10 = 0 -- score", ["object_id"]),
        ("object_id IN (SELECT 3 WHERE score > 1)", ["object_id", "score"]),
        ("1 = 1", []),
        ("patient = 3", []),
        # Over several, and none that can be told.
        ("COLUMNS('.*_ms') > 3", NAMES),
        ("score >", NAMES),
        ("\ud800", NAMES),
    ],
)
def test_columns_that_a_condition_reads(where: str, read: list[str]) -> None:
    assert columns_in(where, NAMES) == read
