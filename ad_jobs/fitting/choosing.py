"""Which of several judged detectors is kept: a rule over what they find of synthetic defects, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence

from ad_jobs.fitting.synthetic import Judged

# By how much less AUROC is chance: few images are held out, and their defects are drawn.
CHANCE = 0.01
RULE = f"of those whose mean AUROC over the kinds of defects is within {CHANCE} of the best, the fastest to scan"


def chosen(judged: Sequence[Judged], score_cpu_ms: Sequence[float]) -> int:
    """The place of the detector that is kept, among such as were judged by the same defects, one each.

    Args:
        judged: one detector's scores each.
        score_cpu_ms: what an image costs of a CPU's time.
    """
    found = [float(one.found()[0]) for one in judged]
    good = [place for place, value in enumerate(found) if value >= max(found) - CHANCE]
    return min(good, key=lambda place: score_cpu_ms[place])
