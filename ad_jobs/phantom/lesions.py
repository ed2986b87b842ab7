"""Lesions of graded contrast and size, drawn into a slice together with the mask of what they changed."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ad_jobs.phantom.anatomy import Floats, Slice, noise

Kind = Literal["bright", "dark", "ring", "texture"]

# Ring: an enhancing rim around a dark core. Texture: coarse grain of the tissue's own mean signal.
KINDS: tuple[Kind, ...] = ("bright", "dark", "ring", "texture")
# Of the lesions, drawn at a third to a half of the usual contrast.
SUBTLE_SHARE = 0.15

# A pixel belongs to the mask where at least half of the lesion's effect reaches it.
_HALF = 0.5


class Lesion(NamedTuple):
    """A slice's signal with a lesion in it, and the lesion's mask, both [rows, columns]."""

    signal: Floats
    mask: NDArray[np.bool_]
    kind: Kind
    subtle: bool


def add_lesion(healthy: Slice, rng: np.random.Generator) -> Lesion:
    """`healthy` with one random lesion inside the brain: a mass, and around most masses a darker halo."""
    kind = KINDS[rng.integers(len(KINDS))]
    subtle = bool(rng.random() < SUBTLE_SHARE)
    strength = rng.uniform(0.35, 0.55) if subtle else rng.uniform(0.8, 1.1)
    radius = rng.uniform(0.085, 0.12) if subtle else rng.uniform(0.13, 0.22)
    distance = _distance(healthy, radius, rng)
    px = 2.0 / healthy.signal.shape[0]
    soft = px * rng.uniform(1.5, 3.0)
    core = np.clip(0.5 - distance / (2 * soft), 0.0, 1.0)
    halo = np.zeros_like(core)
    if kind in ("bright", "ring") or rng.random() < 0.3:
        reach = radius * rng.uniform(0.35, 0.8)
        halo = np.clip(1.0 - np.maximum(distance, 0.0) / reach, 0.0, 1.0) ** 0.7
    core *= healthy.brain
    halo *= healthy.brain * (1.0 - core)
    signal = healthy.signal * (1.0 - 0.34 * strength * halo)
    signal += (_mass(kind, healthy, distance, radius, strength, rng) - signal) * core
    mask = (core >= _HALF) | (halo >= _HALF)
    return Lesion(np.clip(signal, 0.0, 1.0), mask, kind, subtle)


def _distance(healthy: Slice, radius: float, rng: np.random.Generator) -> Floats:
    """Signed distance to the outline of an irregular blob of about `radius`, negative inside."""
    rows, columns = healthy.signal.shape
    x, y = healthy.grid
    places = np.flatnonzero(healthy.seats)
    at = places[rng.integers(len(places))]
    angle = rng.uniform(0.0, np.pi)
    stretch = rng.uniform(0.8, 1.25)
    dx, dy = x - x.flat[at], y - y.flat[at]
    u = (np.cos(angle) * dx + np.sin(angle) * dy) * stretch
    v = (np.cos(angle) * dy - np.sin(angle) * dx) / stretch
    return np.hypot(u, v) - radius * (1.0 + 0.13 * noise(rng, rows, columns, 0.08))


def _mass(
    kind: Kind, healthy: Slice, distance: Floats, radius: float, strength: float, rng: np.random.Generator
) -> Floats:
    """The signal that the lesion's core has at full weight."""
    rows, columns = healthy.signal.shape
    # What the tissue would be without its folds: a mass replaces them.
    around = float(np.median(healthy.signal[(healthy.brain > 0.5) & (distance < 1.5 * radius)]))
    grain = noise(rng, rows, columns, 0.02)
    plain = around + (healthy.signal - around) * (1.0 - min(1.0, strength))
    if kind == "bright":
        return plain + strength * (0.26 + 0.03 * grain)
    if kind == "dark":
        return plain - strength * (0.33 + 0.02 * grain)
    if kind == "ring":
        rim = np.exp(-(((distance + 0.22 * radius) / (0.22 * radius)) ** 2))
        return plain + strength * (0.50 * rim - 0.24 + 0.02 * grain)
    return plain + strength * 0.15 * noise(rng, rows, columns, 0.035)
