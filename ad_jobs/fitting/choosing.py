"""Which of several judged detectors is kept: a rule over what they find of synthetic defects, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ad_jobs.fitting.fusion import chosen as joining
from ad_jobs.fitting.synthetic import Judged

# By how much less AUROC is chance: few images are held out, and their defects are drawn.
CHANCE = 0.005
RULE = (
    f"of those whose mean AUROC over the kinds of defects is within {CHANCE} of the best, a fusion, or else the "
    "fastest to scan"
)


class Option(NamedTuple):
    """What may be kept: a detector, or a fusion of several.

    `judged` has its scores alone, `score_cpu_ms` is what an image costs of a CPU's time.
    """

    name: str
    judged: Judged
    score_cpu_ms: float
    # Of a fusion: their places among the detectors.
    members: tuple[int, ...] = ()

    @property
    def found(self) -> float:
        """The mean of its AUROC over the kinds of defects."""
        return float(self.judged.found()[0])


def fusion_of(options: Sequence[Option]) -> Option | None:
    """The fusion of those that find more together, judged by the same defects; None where it is one alone."""
    judged = Judged.together([one.judged for one in options])
    # Of one held-out image, or of images that are all the same, no spread is known.
    if not judged.normal.std(0).any():
        return None
    weights = joining(judged)
    members = tuple(place for place, weight in enumerate(weights) if weight)
    if len(members) < 2:
        return None
    name = "fused-" + "-".join(options[place].name for place in members)
    return Option(name, judged.fused(weights), sum(options[place].score_cpu_ms for place in members), members)


def chosen(options: Sequence[Option]) -> Option:
    """The one that is kept by RULE: a fusion loses least where real defects order detectors otherwise."""
    best = max(one.found for one in options)
    good = (one for one in options if one.found >= best - CHANCE)
    return min(good, key=lambda one: (not one.members, one.score_cpu_ms))
