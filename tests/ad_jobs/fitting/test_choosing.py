"""Which of several judged detectors is kept."""

from __future__ import annotations

import numpy as np
import pytest

from ad_jobs.fitting.choosing import CHANCE, Option, chosen, fusion_of
from ad_jobs.fitting.synthetic import Judged

NORMAL = np.arange(100.0)


def option(name: str, found: float, score_cpu_ms: float) -> Option:
    """One that finds so much of its only kind of defects: that share of normal images scores below each."""
    judged = Judged(("blob",), NORMAL[:, None], np.full((10, 1, 1), 100 * found - 0.5))
    return Option(name, judged, score_cpu_ms)


def test_of_those_within_chance_of_the_best_the_fastest_is_kept() -> None:
    best, near, far = option("best", 0.90, 50), option("near", 0.90 - CHANCE, 5), option("far", 0.88, 1)
    assert best.found == pytest.approx(0.9)
    assert chosen([best, near, far]) is near
    assert chosen([best, far]) is best
    assert chosen([far]) is far


def test_among_those_a_fusion_is_kept_though_it_is_slower() -> None:
    best, fusion = option("best", 0.90, 5), option("fused", 0.898, 50)._replace(members=(0, 1))
    assert chosen([best, fusion]) is fusion
    assert chosen([best, fusion._replace(judged=option("less", 0.89, 50).judged)]) is best


def of_scores(name: str, normal: list[float], defective: list[float]) -> Option:
    return Option(name, Judged(("blob",), np.array(normal)[:, None], np.array(defective)[:, None, None]), 10.0)


def test_a_fusion_is_of_those_that_find_more_together() -> None:
    """Each finds one of two defects, and sees the other as normal."""
    one = of_scores("one", [0, 1, 2, 3], [9, 1.5])
    other = of_scores("other", [1, 0, 3, 2], [1.5, 9])
    fusion = fusion_of([one, other])
    assert fusion is not None
    assert fusion.name == "fused-one-other" or fusion.name == "fused-other-one"
    assert sorted(fusion.members) == [0, 1]
    assert fusion.found > one.found
    assert fusion.score_cpu_ms == 20
    assert chosen([one, other, fusion]) is fusion


def test_there_is_no_fusion_where_another_does_harm() -> None:
    one = of_scores("one", [0, 1, 2, 3], [9, 9])
    assert fusion_of([one, of_scores("other", [1, 0, 3, 2], [-90, -90])]) is None
    assert fusion_of([one]) is None
