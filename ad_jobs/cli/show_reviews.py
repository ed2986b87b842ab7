"""What reviewers said of a run as text."""

from __future__ import annotations

from typing import Any

from cluster.counting import counted


def reviews_text(reviews: dict[str, Any]) -> list[str]:
    """How many verdicts reviewers gave, and how far they agree."""
    if not reviews["verdicts"]:
        return []
    by = ", ".join(f"{reviewer} {n}" for reviewer, n in reviews["reviewers"].items())
    lines = [f"  reviewed     {counted(reviews['verdicts'], 'verdict')}: {by}"]
    if reviews["read_by_several"]:
        found = reviews["abnormal"]
        kappa = "" if found["kappa"] is None else f", {reviews['statistic']}'s kappa {found['kappa']:.3f}"
        both = counted(reviews["read_by_several"], "image")
        lines.append(f"  agreement    {found['agree']:.1%} on abnormal or not{kappa}, of {both} read by several")
    return lines
