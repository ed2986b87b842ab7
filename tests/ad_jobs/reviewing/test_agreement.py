"""Agreement of reviewers, against values worked out by hand."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest

from ad_jobs.reviewing.agreement import agreement, cohen, fleiss
from ad_jobs.reviewing.verdicts import Verdict


def _said(reviewer: str, words: str) -> list[Verdict]:
    """One verdict for each letter, on objects 0, 1, 2, ...; a dot for none."""
    named = {"a": "accepted", "r": "rejected", "s": "supplemented"}
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        Verdict(f"{reviewer}{n}", n, 0, None, f"/a/{n}", reviewer, named[letter], None, None, True, moment)
        for n, letter in enumerate(words)
        if letter != "."
    ]


def test_cohen_of_the_textbook() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: agree 0.7, by chance 0.5 * 0.6 + 0.5 * 0.4.
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    found = cohen(pairs)
    assert found["agree"] == pytest.approx(0.7)
    assert found["kappa"] == pytest.approx(0.4)


def test_fleiss_of_his_own_example() -> None:
    # Fleiss 1971 as it is commonly shown: 10 subjects, 14 raters, 5 categories, kappa 0.210.
    rows = [
        *([0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]),
        *([7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]),
    ]
    found = fleiss([Counter({str(k): n for k, n in enumerate(row) if n}) for row in rows])
    assert found["agree"] == pytest.approx(0.378, abs=5e-4)
    assert found["kappa"] == pytest.approx(0.210, abs=5e-4)


def test_only_what_several_read_is_compared_and_abnormal_is_one_word() -> None:
    found = agreement([*_said("Ada", "aarr.a"), *_said("Bob", "asra..")])
    assert found["reviewers"] == {"Ada": 5, "Bob": 4}
    assert (found["verdicts"], found["read_by_several"], found["statistic"]) == (9, 4, "Cohen")
    # a-a, a-s, r-r, r-a.
    assert found["words"]["agree"] == pytest.approx(0.5)
    assert found["abnormal"]["agree"] == pytest.approx(0.75)
    # By chance: 1/2 * 3/4 + 1/2 * 1/4.
    assert found["abnormal"]["kappa"] == pytest.approx(0.5)


def test_three_reviewers_are_fleiss_matter() -> None:
    found = agreement([*_said("Ada", "ar"), *_said("Bob", "ar"), *_said("Cy", "a.")])
    assert (found["statistic"], found["read_by_several"]) == ("Fleiss", 2)
    assert found["abnormal"] == {"agree": 1.0, "kappa": 1.0}


def test_where_nothing_can_be_said_nothing_is() -> None:
    assert agreement([])["abnormal"] == {"agree": None, "kappa": None}
    assert agreement(_said("Ada", "aar"))["statistic"] is None
    # Both always say the same: nothing is beyond chance.
    assert agreement([*_said("Ada", "aa"), *_said("Bob", "aa")])["words"] == {"agree": 1.0, "kappa": None}
