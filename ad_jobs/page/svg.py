"""The parts of a chart as SVG: its plot area, grids, lines, bars and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape


class Frame(NamedTuple):
    """The plot area inside a chart: `width` and `height` of the whole, the others its margins."""

    width: float
    height: float
    left: float
    top: float
    right: float
    bottom: float

    def x(self, share: float) -> float:
        """Where a share of the plot area's width lies."""
        return round(self.left + share * (self.width - self.left - self.right), 1)

    def y(self, share: float) -> float:
        """Where a share of the plot area's height lies, counted from below."""
        return round(self.height - self.bottom - share * (self.height - self.top - self.bottom), 1)


def round_ticks(low: float, high: float, about: int, whole: bool = False) -> list[float]:
    """About so many round numbers (1, 2 or 5 times a power of ten apart) between two values."""
    raw = (high - low) / max(about, 1)
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first = np.ceil(low / step - 1e-9)
    # Adding zero turns -0.0 into 0.0.
    return [float(k * step) + 0.0 for k in np.arange(first, np.floor(high / step + 1e-9) + 1)]


def grid_x(frame: Frame, ticks: Sequence[tuple[float, str]]) -> Markup:
    """Labels below the plot area at shares of its width, and the line they stand under."""
    return Markup("").join(
        Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            frame.x(share), frame.height - frame.bottom + 16, text
        )
        for share, text in ticks
    ) + line(frame.x(0), frame.y(0), frame.x(1), frame.y(0), "axis")


def grid_y(frame: Frame, ticks: Sequence[tuple[float, str]]) -> Markup:
    """Lines across the plot area at shares of its height, and their labels on the left."""
    return Markup("").join(
        line(frame.x(0), frame.y(share), frame.x(1), frame.y(share), "grid")
        + Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
            frame.left - 6, round(frame.y(share) + 4, 1), text
        )
        for share, text in ticks
    )


def axis_labels(frame: Frame, x_label: str, y_label: str) -> Markup:
    """What the two axes show."""
    middle = (frame.top + frame.height - frame.bottom) / 2
    return Markup(
        '<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>'
        '<text class="label" transform="translate(12 {}) rotate(-90)" text-anchor="middle">{}</text>'
    ).format(frame.x(0.5), frame.height - 5, x_label, round(middle, 1), y_label)


def bar(name: str, x: float, y: float, width: float, height: float, tip: str) -> Markup:
    """A bar of class `name` that tells `tip` under the pointer."""
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
        name, round(x, 1), y, round(width, 1), round(height, 1), tip
    )


def line(x1: float, y1: float, x2: float, y2: float, name: str) -> Markup:
    """A line of class `name`."""
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(name, x1, y1, x2, y2)


def draw(frame: Frame, title: str, parts: Sequence[Markup]) -> Markup:
    """The chart; `title` is what a screen reader says of it."""
    return Markup(
        '<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {}" style="max-width:{}px">{}</svg>'
    ).format(escape(title), f"{frame.width:g}", f"{frame.height:g}", f"{frame.width:g}", Markup("").join(parts))
