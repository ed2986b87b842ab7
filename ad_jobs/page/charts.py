"""Charts as inline SVG: what a report says of scores and curves.

Colours, fonts and dark mode come from the page's style sheet by class name.
One unit is one CSS pixel at the chart's natural width, so that text keeps its size; a chart that must serve wide and
narrow screens is drawn twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from ad_jobs.page import svg
from cluster.counting import counted

Floats = npt.NDArray[np.float64]

# Counts that span more than this are drawn on a log axis: otherwise the few abnormal images would not be seen.
LOG_FROM = 100
# A bar of one image keeps this share of a decade on the log axis.
_LOG_FOOT = 0.3
_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


class Bars(NamedTuple):
    """A histogram: `edges` [n + 1] and counts [n]; `beyond` scores were put into the outermost bins."""

    edges: Floats
    counts: npt.NDArray[np.int64]
    beyond: int


def bin_scores(chunks: Iterable[Floats], around: Sequence[float], threshold: float, bins: int = 48) -> Bars:
    """A histogram of finite scores with the threshold on an edge, so that no bar is half flagged.

    Scores far outside the bulk go to the outermost bins: one outlier must not squeeze everything into one bar.

    Args:
        chunks: the scores, part by part.
        around: the lowest of them, their quantiles at 0.1 % and 99.9 %, and the highest.
        threshold: what is above it is flagged.
        bins: about so many.
    """
    lowest, low, high, highest = around
    spread = max(high - low, abs(threshold) * 1e-6, 1e-12)
    low = min(max(lowest, low - spread / 2), threshold)
    high = max(min(highest, high + spread / 2), threshold)
    step = max(high - low, spread) / bins
    below, above = max(int(np.ceil((threshold - low) / step)), 1), max(int(np.ceil((high - threshold) / step)), 1)
    edges: Floats = threshold + step * np.arange(-below, above + 1, dtype=np.float64)
    counts, beyond = np.zeros(below + above, np.int64), 0
    for scores in chunks:
        # Flagged is score > threshold: a score on the threshold belongs to the bar on its left.
        index = np.clip(np.ceil((scores - threshold) / step).astype(np.int64) - 1 + below, 0, below + above - 1)
        counts += np.bincount(index, minlength=below + above)
        beyond += int(((scores < edges[0]) | (scores > edges[-1])).sum())
    return Bars(edges, counts, beyond)


def score_histogram(bars: Bars, threshold: float | None, *, width: int = 720, height: int = 260) -> Markup:
    """Bars of scores; those above the threshold stand out, the threshold is a labelled line; None draws neither."""
    line = np.inf if threshold is None else threshold
    flagged = np.where(bars.edges[:-1] >= line, bars.counts, 0)
    series = [("bar", bars.counts - flagged), ("bar flagged", flagged)]
    above = int(flagged.sum())
    scores = counted(int(bars.counts.sum()), "score", spec=",")
    title = f"Histogram of {scores}" + ("" if threshold is None else f"; {above:,} above the threshold {threshold:.4g}")
    return _histogram(bars.edges, series, line, title, width, height)


def class_histogram(
    edges: Sequence[float],
    normal: Sequence[int],
    anomalous: Sequence[int],
    threshold: float,
    *,
    width: int = 340,
    height: int = 300,
) -> Markup:
    """Scores of labelled images, normal and anomalous beside each other in every bin."""
    title = f"Scores of {sum(normal):,} normal and {counted(sum(anomalous), 'anomalous image', spec=',')} by label"
    series = [("bar normal", np.asarray(normal)), ("bar anomalous", np.asarray(anomalous))]
    return _histogram(np.asarray(edges, dtype=np.float64), series, threshold, title, width, height)


def curve(
    x: Sequence[float],
    y: Sequence[float],
    *,
    x_label: str,
    y_label: str,
    title: str,
    reference: tuple[tuple[float, float], tuple[float, float]],
    point: tuple[float, float] | None = None,
    size: int = 340,
) -> Markup:
    """A curve in the unit square, with the line of a detector that guesses and the run's operating point."""
    frame = svg.Frame(size, size * 0.88, 44, 12, 12, 40)
    ticks = [(share, f"{share:g}") for share in _QUARTERS]
    parts = [svg.grid_x(frame, ticks), svg.grid_y(frame, ticks)]
    (x0, y0), (x1, y1) = reference
    parts.append(svg.line(frame.x(x0), frame.y(y0), frame.x(x1), frame.y(y1), "guess"))
    path = " ".join(f"{frame.x(a)},{frame.y(b)}" for a, b in zip(x, y, strict=True))
    parts.append(Markup('<polyline class="curve" points="{}"/>').format(path))
    if point is not None:
        parts.append(
            Markup('<circle class="point" cx="{}" cy="{}" r="5"><title>{}</title></circle>').format(
                frame.x(point[0]),
                frame.y(point[1]),
                f"At the run's threshold: {x_label} {point[0]:.3f}, {y_label} {point[1]:.3f}",
            )
        )
    parts.append(svg.axis_labels(frame, x_label, y_label))
    return svg.draw(frame, title, parts)


def interval(value: float, low: float | None, high: float | None) -> Markup:
    """A value between 0 and 1 as a dot on a line, with its interval as a thicker stretch."""
    frame = svg.Frame(160, 16, 6, 0, 6, 0)
    parts = [svg.line(frame.x(0), 8, frame.x(1), 8, "track")]
    if low is not None and high is not None:
        parts.append(svg.line(frame.x(low), 8, frame.x(high), 8, "range"))
    parts.append(Markup('<circle class="point" cx="{}" cy="8" r="4"/>').format(frame.x(value)))
    # The numbers stand beside it in the table: to a screen reader the picture is decoration.
    return Markup(
        '<svg class="interval" viewBox="0 0 160 16" width="160" height="16" aria-hidden="true">{}</svg>'
    ).format(Markup("").join(parts))


def _histogram(
    edges: Floats,
    series: Sequence[tuple[str, npt.NDArray[np.int64]]],
    threshold: float,
    title: str,
    width: int,
    height: int,
) -> Markup:
    frame = svg.Frame(width, height, 52, 24, 14, 40)
    counts = np.stack([values for _, values in series])
    total = counts.sum(axis=0)
    top = max(int(total.max()), 1)
    log = top >= LOG_FROM and (total > 0).any() and top / total[total > 0].min() >= LOG_FROM
    low, high = float(edges[0]), float(edges[-1])

    def share_x(value: float) -> float:
        return (value - low) / (high - low)

    def share_y(count: float) -> float:
        if count <= 0:
            return 0.0
        if log:
            return float((np.log10(count) + _LOG_FOOT) / (np.log10(top) + _LOG_FOOT))
        return count / top

    ticks_y = [10**k for k in range(len(str(top)))] if log else svg.round_ticks(0, top, 4, whole=True)
    parts = [
        svg.grid_y(frame, [(share_y(t), f"{int(t):,}") for t in ticks_y]),
        svg.grid_x(frame, [(share_x(t), f"{t:.6g}") for t in svg.round_ticks(low, high, width // 90)]),
    ]
    for i in range(total.size):
        left, right = frame.x(share_x(edges[i])), frame.x(share_x(edges[i + 1]))
        base = 0
        for (name, _), values in zip(series, counts, strict=True):
            if values[i]:
                # Stacked on counts, so that on a log axis, too, the bar's top shows the bin's total.
                y0, y1 = frame.y(share_y(base)), frame.y(share_y(base + values[i]))
                tip = f"{edges[i]:.4g} to {edges[i + 1]:.4g}: {int(values[i]):,}"
                parts.append(svg.bar(name, left + 0.5, y1, max(right - left - 1, 0.8), y0 - y1, tip))
                base += int(values[i])
    where = share_x(threshold)
    if 0 <= where <= 1:
        anchor = "end" if where > 0.6 else "start"
        x = frame.x(where)
        parts.append(svg.line(x, frame.top - 10, x, frame.y(0), "threshold"))
        parts.append(
            Markup('<text class="threshold-label" x="{}" y="{}" text-anchor="{}">threshold {}</text>').format(
                x + (-6 if anchor == "end" else 6), frame.top - 4, anchor, f"{threshold:.4g}"
            )
        )
    parts.append(svg.axis_labels(frame, "score", "images, log scale" if log else "images"))
    return svg.draw(frame, title, parts)
