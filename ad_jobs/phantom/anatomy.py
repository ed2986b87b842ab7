"""Head-like slices from a random generator: patients who differ, slices of a patient that belong together.

The pictures imitate the look of axial T1-weighted MR: bright scalp, dark bone, dark fluid, a folded grey ribbon around
white matter.
They are drawn, not derived from anybody.
Signal is in [0, 1]; lengths are in units of half the image's height; y grows towards the back of the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Floats = NDArray[np.float64]

# Signal of the tissues before a patient's own contrast.
AIR, SCALP, BONE, FLUID, GREY, WHITE = 0.02, 0.82, 0.10, 0.16, 0.47, 0.66

# Radii at which one layer ends and the next begins, as a share of the head's outline.
_SKIN, _SKULL_OUTER, _BRAIN = 1.0, 0.925, 0.83


@dataclass(frozen=True)
class Head:
    """What stays the same through all slices of a patient.

    `egg` is how much wider the back is than the front, `lopsided` the left ventricle against the right one.
    Of `skull` (the bone's thickness), `folds` (the sulci's width, which grows with age) and `ventricles` (their size) 1
    is usual.
    """

    half_width: float
    half_height: float
    egg: float
    rotation_rad: float
    shift_x: float
    shift_y: float
    skull: float
    folds: float
    ventricles: float
    lopsided: float
    grey: float
    white: float
    scalp: float

    @staticmethod
    def draw(rng: np.random.Generator) -> Head:
        """A random patient."""
        return Head(
            half_width=rng.normal(0.70, 0.025),
            half_height=rng.normal(0.84, 0.025),
            egg=rng.uniform(0.04, 0.14),
            rotation_rad=rng.normal(0.0, 0.05),
            shift_x=rng.normal(0.0, 0.02),
            shift_y=rng.normal(0.0, 0.02),
            skull=rng.uniform(0.8, 1.25),
            folds=rng.uniform(0.7, 1.4),
            ventricles=rng.uniform(0.75, 1.3),
            lopsided=rng.normal(0.0, 0.08),
            grey=GREY * rng.normal(1.0, 0.03),
            white=WHITE * rng.normal(1.0, 0.03),
            scalp=SCALP * rng.normal(1.0, 0.08),
        )


class Slice(NamedTuple):
    """One slice: `signal` float64 [rows, columns] in [0, 1], and where a lesion may grow.

    `brain` is 1 inside the brain, 0 outside, smooth at its edge.
    `seats` are where a lesion's centre may lie: in the brain, away from its edge.
    `grid` holds x and y of each pixel in the head's own frame.
    """

    signal: Floats
    brain: Floats
    seats: NDArray[np.bool_]
    grid: tuple[Floats, Floats]


def draw_slice(head: Head, level: float, rows: int, columns: int, rng: np.random.Generator) -> Slice:
    """A slice through `head` at `level`: 0 through the basal ganglia, 1 near the crown. Without noise."""
    x, y = _head_frame(head, rows, columns)
    x, y = x + 0.016 * noise(rng, rows, columns, 0.16), y + 0.016 * noise(rng, rows, columns, 0.16)
    shrink = np.sqrt(1.0 - (0.72 * level) ** 2)
    radius = np.hypot(x * (1.0 - head.egg * y) / (head.half_width * shrink), y / (head.half_height * shrink))
    # Edges are about a pixel and a half wide.
    px = 2.0 / rows
    unit_px = 1.5 * px / (head.half_width * shrink)

    def inside(limit: float) -> Floats:
        return _edge(limit - radius, unit_px)

    brain_limit = _SKULL_OUTER - (_SKULL_OUTER - _BRAIN) * head.skull
    signal = AIR + (head.scalp * (1.0 + 0.08 * noise(rng, rows, columns, 0.03)) - AIR) * inside(_SKIN)
    signal += (BONE - signal) * inside(_SKULL_OUTER)
    marrow = np.exp(-(((radius - (_SKULL_OUTER + brain_limit) / 2) / 0.018) ** 2))
    signal += 0.22 * marrow * (0.7 + 0.3 * noise(rng, rows, columns, 0.05))
    signal += (FLUID - signal) * inside(brain_limit)
    brain = inside(brain_limit - 0.022)
    signal += (_brain(head, level, x, y, radius / brain_limit, rng) - signal) * brain
    return Slice(np.clip(signal, 0.0, 1.0), brain, radius < brain_limit - 0.12, (x, y))


def _brain(head: Head, level: float, x: Floats, y: Floats, depth: Floats, rng: np.random.Generator) -> Floats:
    """The signal inside the brain: white matter, the folded ribbon, nuclei, ventricles and the midline."""
    rows, columns = x.shape
    px = 2.0 / rows
    # Its zeros wind like sulci.
    fold = np.abs(noise(rng, rows, columns, 0.052))
    near_surface = _edge(depth - (0.70 + 0.06 * noise(rng, rows, columns, 0.1)), 0.06)
    # Grey matter lines the sulci and the surface; fluid fills the middle of the sulci.
    ribbon = np.maximum(_edge(0.60 - fold, 0.16) * near_surface, _edge(depth - 0.90, 0.025))
    sulci = _edge(0.17 * head.folds - fold, 0.08) * near_surface
    tissue = head.white + (head.grey - head.white) * ribbon
    tissue += 0.012 * noise(rng, rows, columns, 0.02)

    # Nuclei and fissures belong to the lower slices.
    deep = np.clip(1.0 - level / 0.45, 0.0, 1.0)
    if deep > 0:
        for side in (-1.0, 1.0):
            nucleus = _ellipse(x - side * 0.20, y - 0.06, 0.075, 0.15, side * 0.35, px)
            lentiform = _ellipse(x - side * 0.27, y + 0.06, 0.055, 0.12, side * 0.25, px)
            tissue += (head.grey - tissue) * np.maximum(nucleus, lentiform) * 0.85 * min(1.0, 2 * deep)
            sylvian = _ellipse(x - side * 0.47, y + 0.07, 0.13, 0.014 * head.folds, side * 0.5, px)
            tissue += (FLUID - tissue) * sylvian * 0.8 * min(1.0, 2 * deep)
        third = _ellipse(x, y - 0.05, 0.012 * head.ventricles, 0.11, 0.0, px)
        tissue += (FLUID - tissue) * third * min(1.0, 2 * deep)
    signal = tissue + (FLUID - tissue) * 0.85 * sulci

    fissure = _edge(0.008 + 0.006 * head.folds - np.abs(x), px) * _edge(np.abs(y) - (0.36 - 0.33 * level), 0.03)
    signal += (FLUID - signal) * 0.8 * fissure
    size = head.ventricles * np.clip(1.0 - (level / 0.72) ** 2, 0.0, 1.0)
    if size > 0.05:
        for side in (-1.0, 1.0):
            grown = size * (1.0 + side * head.lopsided)
            signal += (FLUID - signal) * _lateral_ventricle(side * x, y, grown, level, px)
    return signal


def _lateral_ventricle(x: Floats, y: Floats, size: float, level: float, px: float) -> Floats:
    """One lateral ventricle, drawn for the side x > 0: the front horn, the body, and the back horn."""
    spread = 1.0 - 0.3 * level
    horns = np.maximum(
        _ellipse(x - 0.095 * spread, y + 0.20, 0.042 * size, 0.115 * size**0.5, -0.45, px),
        _ellipse(x - 0.150 * spread, y - 0.27, 0.045 * size, 0.130 * size**0.5, 0.40, px),
    )
    # The body lies above the third ventricle: it shows in the middle slices only.
    shown = min(1.0, max(0.0, 0.5 + (level - 0.22) / 0.1))
    return np.maximum(horns, shown * _ellipse(x - 0.085, y - 0.03, 0.036 * size, 0.24, 0.10, px))


def noise(rng: np.random.Generator, rows: int, columns: int, scale: float) -> Floats:
    """A smooth random field [rows, columns], mean 0, deviation 1; `scale` is its grain in half heights."""
    sigma = max(0.6, scale * rows / 2)
    # A coarse grid, enlarged, costs a fraction of a wide filter.
    step = max(1, int(sigma / 2.5))
    coarse = rng.standard_normal((rows // step + 3, columns // step + 3))
    smooth = gaussian_filter(coarse, sigma / step, mode="wrap")
    smooth = (smooth - smooth.mean()) / smooth.std()
    return (smooth if step == 1 else _enlarge(smooth, step))[:rows, :columns]


def _enlarge(field: Floats, step: int) -> Floats:
    """`field` with `step` - 1 values interpolated between any two neighbours, rows first."""
    for axis in (0, 1):
        length = field.shape[axis]
        at = np.arange((length - 1) * step) / step
        low = at.astype(int)
        weight = (at - low)[:, None] if axis == 0 else at - low
        field = np.take(field, low, axis) * (1 - weight) + np.take(field, low + 1, axis) * weight
    return field


def _head_frame(head: Head, rows: int, columns: int) -> tuple[Floats, Floats]:
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float64)
    x = (x - (columns - 1) / 2) / (rows / 2) - head.shift_x
    y = (y - (rows - 1) / 2) / (rows / 2) - head.shift_y
    c, s = np.cos(head.rotation_rad), np.sin(head.rotation_rad)
    return c * x + s * y, c * y - s * x


def _edge(distance: Floats, width: float) -> Floats:
    """0 outside, 1 inside, smooth over about twice `width`; `distance` is positive inside."""
    return np.clip(0.5 + distance / (2 * width), 0.0, 1.0)


def _ellipse(x: Floats, y: Floats, half_x: float, half_y: float, angle_rad: float, px: float) -> Floats:
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    radius = np.hypot((c * x + s * y) / half_x, (c * y - s * x) / half_y)
    return _edge((1.0 - radius) * min(half_x, half_y), 1.2 * px)
