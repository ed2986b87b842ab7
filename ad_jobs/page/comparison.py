"""The page of a comparison: what two runs were made with, what became of objects, scores and flags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from ad_jobs.comparing.settings import Pair
from ad_jobs.comparing.summary import Scores
from ad_jobs.page import svg
from ad_jobs.page.render import fill
from ad_jobs.results.quantiles import quantiles
from cluster.counting import counted

_BINS = 40
_CELL = Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}" fill-opacity="{}"><title>{}</title></rect>')
# A cell of one row is drawn as dark as this.
_FAINTEST = 0.18
# Scores beyond these quantiles are drawn at the edge: one outlier must not squeeze the rest into one cell.
_BULK = (0.001, 0.999)


def render_comparison(found: dict[str, Any], charts: Sequence[Markup | None]) -> str:
    """The page as HTML, of what `compare` returns and a chart for each pair of models."""
    return fill("comparison.html.j2", {"found": found, "charts": charts})


def chart(
    scores: Callable[[], Iterable[Scores]],
    pair: Pair,
    thresholds: tuple[float | None, float | None],
    *,
    size: int = 420,
) -> Markup | None:
    """How many rows have which two scores, as a square of cells with both thresholds; None without rows.

    Args:
        scores: of both runs, some rows at a time; they are gone through several times.
        pair: the models that gave them.
        thresholds: above which rows are flagged in A and in B; None where something else flags them.
        size: width in CSS pixels.
    """
    edges_a = _edges(lambda: (some.a for some in scores()), thresholds[0])
    edges_b = _edges(lambda: (some.b for some in scores()), thresholds[1])
    if edges_a is None or edges_b is None:
        return None
    if pair.same:
        # On one scale, so that what stayed as it was lies on the diagonal.
        edges_a = edges_b = np.linspace(min(edges_a[0], edges_b[0]), max(edges_a[-1], edges_b[-1]), _BINS + 1)
    counts = np.zeros((_BINS, _BINS), np.int64)
    for some in scores():
        columns, rows = _cells(some.a, edges_a), _cells(some.b, edges_b)
        counts += np.bincount(rows * _BINS + columns, minlength=_BINS * _BINS).reshape(_BINS, _BINS)
    frame = svg.Frame(size, size * 0.92, 56, 12, 14, 42)
    parts = [svg.grid_x(frame, _ticks(edges_a)), svg.grid_y(frame, _ticks(edges_b))]
    darkest = np.log1p(counts.max())
    for row, column in zip(*np.nonzero(counts), strict=True):
        left, right = frame.x(column / _BINS), frame.x((column + 1) / _BINS)
        top, bottom = frame.y((row + 1) / _BINS), frame.y(row / _BINS)
        count = int(counts[row, column])
        shade = _FAINTEST + (1 - _FAINTEST) * np.log1p(count) / darkest
        parts.append(
            Markup(
                '<rect class="bar" x="{}" y="{}" width="{}" height="{}" fill-opacity="{}"><title>{}</title></rect>'
            ).format(
                left,
                top,
                round(right - left, 1),
                round(bottom - top, 1),
                f"{shade:.2f}",
                f"A {edges_a[column]:.4g} to {edges_a[column + 1]:.4g}, "
                f"B {edges_b[row]:.4g} to {edges_b[row + 1]:.4g}: {count:,}",
            )
        )
    if thresholds[0] is not None:
        at_a = frame.x(_share(thresholds[0], edges_a))
        parts.append(svg.line(at_a, frame.y(0), at_a, frame.y(1), "threshold"))
    if thresholds[1] is not None:
        at_b = frame.y(_share(thresholds[1], edges_b))
        parts.append(svg.line(frame.x(0), at_b, frame.x(1), at_b, "threshold"))
    parts.append(svg.axis_labels(frame, "score in A", "score in B"))
    title = f"Scores of {counted(int(counts.sum()), 'row', spec=',')} in A and in B"
    return svg.draw(frame, title, parts)


def _edges(
    scores: Callable[[], Iterable[npt.NDArray[np.float32]]], threshold: float | None
) -> npt.NDArray[np.float64] | None:
    """Of cells that hold the bulk of the scores, and a threshold within; None of no scores."""
    found = quantiles(scores, _BULK)
    if found is None:
        return None
    within = [] if threshold is None else [threshold]
    low, high = min([found[0], *within]), max([found[1], *within])
    margin = max((high - low) * 0.04, abs(low) * 1e-6, 1e-12)
    return np.linspace(low - margin, high + margin, _BINS + 1)


def _cells(scores: npt.NDArray[np.float32], edges: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    return np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, _BINS - 1)


def _share(value: float, edges: npt.NDArray[np.float64]) -> float:
    return float((value - edges[0]) / (edges[-1] - edges[0]))


def _ticks(edges: npt.NDArray[np.float64]) -> list[tuple[float, str]]:
    return [(_share(tick, edges), f"{tick:.6g}") for tick in svg.round_ticks(float(edges[0]), float(edges[-1]), 5)]
