"""Synthetic defects in normal images, to hold detectors of different kinds against each other.

None is like a real one, and each favours some kind of detector: so they are of several kinds, drawn from subtle to
clear and from small to large, and lie where an image has structure rather than in its empty surroundings.
What lies outside of a defect's mask is the very image; a change of the whole image is no defect.

After CutPaste (Li et al., CVPR 2021, arXiv 2104.04015), DRAEM (Zavrtanik et al., ICCV 2021, arXiv 2108.07610) and NSA
(Schlüter et al., ECCV 2022, arXiv 2109.15222).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# [c, H, W] in [0, 1].
Image = NDArray[np.float32]
Mask = NDArray[np.float32]

# Half of a defect's length, as a share of the image's shorter side; drawn by its logarithm, so that small ones are as
# many as large ones.
RADII = (0.03, 0.2)
# Of what is brighter or darker, as a share of the image's own contrast; by its logarithm, too.
STEPS = (0.1, 0.6)
# A defect changes its middle by so much of the contrast, or another one is drawn, so many times.
VISIBLE, DRAWS = 0.05, 8
# The contrast of an image that has next to none.
FLAT = 0.05


class Drawn(NamedTuple):
    """A place and a size: `y`, `x`, and `radius` in pixels."""

    y: float
    x: float
    radius: float


class Defect(NamedTuple):
    """An image [c, H, W] with a defect, and where: [H, W] in [0, 1], 0 where the image is as it was."""

    image: Image
    mask: Mask


def defective(image: Image, kind: str, rng: np.random.Generator) -> Defect:
    """The image, float32 [c, H, W] in [0, 1], with one defect of a kind of KINDS.

    Where the image is so flat that none can be seen, the clearest of those drawn.
    """
    contrast = _contrast(image)
    best, seen = Defect(image, np.zeros(image.shape[1:], np.float32)), -1.0
    for _ in range(DRAWS):
        changed, mask = KINDS[kind](image, _place(image, rng), contrast, rng)
        mixed = np.where(mask > 0, image + (changed - image) * mask, image).clip(0, 1).astype(np.float32)
        change = float(np.sqrt(np.mean((mixed - image)[:, mask > 0.5] ** 2))) if (mask > 0.5).any() else 0.0
        if change > seen:
            best, seen = Defect(mixed, mask), change
        if seen >= VISIBLE * contrast:
            break
    return best


# --- Kinds: what stands inside of a mask, [c, H, W], and the mask


def paste(image: Image, at: Drawn, contrast: float, rng: np.random.Generator) -> Defect:  # noqa: ARG001
    """A part of the same image from another place, turned by a quarter or mirrored, its edges blended."""
    height, width = image.shape[1:]
    other = image[:, ::-1] if rng.random() < 0.5 else image[:, :, ::-1]
    away = [int(rng.uniform(0.15, 0.85) * side) for side in (height, width)]
    return Defect(np.roll(other, away, (1, 2)), _patch(image, at, rng, edge=0.25))


def blob(image: Image, at: Drawn, contrast: float, rng: np.random.Generator) -> Defect:
    """A spot that is brighter or darker, with an edge from sharp to soft."""
    return Defect(image + _step(contrast, rng), _patch(image, at, rng, edge=rng.uniform(0.1, 1.0)))


def line(image: Image, at: Drawn, contrast: float, rng: np.random.Generator) -> Defect:
    """A scratch or a crack: a thin bent stroke, brighter or darker, three times as long as another defect."""
    height, width = image.shape[1:]
    length, thick = 3 * at.radius, max(0.7, rng.uniform(0.004, 0.015) * min(height, width))
    steps = np.linspace(-1, 1, max(2, int(4 * length)))
    angle = rng.uniform(0, np.pi) + rng.uniform(-0.8, 0.8) * steps
    # Summed from its middle on, so that it goes through the place.
    along = np.stack([np.sin(angle), np.cos(angle)]).cumsum(1) * (2 * length / len(steps))
    along -= along[:, [len(steps) // 2]]
    rows, columns = np.rint(along + np.array([[at.y], [at.x]])).astype(int)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    free = np.ones((height, width), bool)
    free[rows[inside], columns[inside]] = False
    distance = ndimage.distance_transform_edt(free)
    return Defect(image + _step(contrast, rng), (thick + 1 - distance).clip(0, 1).astype(np.float32))


def brightness(image: Image, at: Drawn, contrast: float, rng: np.random.Generator) -> Defect:
    """Light or shadow over a wide part, even or growing to one side."""
    wide = at._replace(radius=2 * at.radius)
    y, x = np.mgrid[: image.shape[1], : image.shape[2]]
    ramp = np.ones(image.shape[1:])
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = ((y - at.y) * np.sin(angle) + (x - at.x) * np.cos(angle)) / wide.radius
    return Defect(image + _step(contrast, rng) * ramp.astype(np.float32), _patch(image, wide, rng, edge=1.0))


def texture(image: Image, at: Drawn, contrast: float, rng: np.random.Generator) -> Defect:
    """Noise over what is there, from fine to coarse grain."""
    noise = ndimage.gaussian_filter(
        rng.standard_normal(image.shape[1:]), rng.uniform(0.004, 0.03) * min(image.shape[1:])
    )
    return Defect(image + abs(_step(contrast, rng)) * noise / noise.std(), _patch(image, at, rng, edge=0.3))


def missing(image: Image, at: Drawn, contrast: float, rng: np.random.Generator) -> Defect:  # noqa: ARG001
    """Structure that is gone: what surrounds it, smoothly continued."""
    mask = _patch(image, at, rng, edge=0.25)
    outside = (mask == 0).astype(np.float32)
    around = [max(1.0, at.radius)] * 2
    weight = ndimage.gaussian_filter(outside, around) + 1e-6
    filled = np.stack([ndimage.gaussian_filter(channel * outside, around) / weight for channel in image])
    return Defect(filled, mask)


def deformation(image: Image, at: Drawn, contrast: float, rng: np.random.Generator) -> Defect:  # noqa: ARG001
    """A smooth local warp: what is there is shifted, swollen or shrunk, most in the middle."""
    # Wider than other defects, as its rim hardly moves.
    radius = 1.5 * at.radius
    y, x = np.mgrid[: image.shape[1], : image.shape[2]].astype(float)
    off = np.stack([y - at.y, x - at.x])
    bump = (1 - (off**2).sum(0) / radius**2).clip(0) ** 2
    # Up to 0.6: nothing folds over.
    far = rng.uniform(0.2, 0.6)
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        moved = far * radius * bump * np.array([np.sin(angle), np.cos(angle)])[:, None, None]
    else:
        moved = (far if rng.random() < 0.5 else -far) * bump * off
    # All of it is mixed in: half of a warp would be a double image.
    mask = (bump > 0).astype(np.float32)
    warped = [ndimage.map_coordinates(channel, np.stack([y, x]) + moved, order=1, mode="nearest") for channel in image]
    return Defect(np.stack(warped), mask)


KINDS: dict[str, Callable[[Image, Drawn, float, np.random.Generator], Defect]] = {
    "paste": paste,
    "blob": blob,
    "line": line,
    "brightness": brightness,
    "texture": texture,
    "missing": missing,
    "deformation": deformation,
}


# --- What kinds share


def _contrast(image: Image) -> float:
    """From the fifth to the 95th percentile of an image's values."""
    low, high = np.quantile(image, [0.05, 0.95])
    return max(FLAT, float(high - low))


def _step(contrast: float, rng: np.random.Generator) -> float:
    return contrast * _by_logarithm(STEPS, rng) * (1 if rng.random() < 0.5 else -1)


def _by_logarithm(between: tuple[float, float], rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(*np.log(between))))


def _place(image: Image, rng: np.random.Generator) -> Drawn:
    """A size, and a place for it: the more likely, the more the image varies around it."""
    height, width = image.shape[1:]
    # At least a pixel and a half.
    radius = max(1.5, _by_logarithm(RADII, rng) * min(height, width))
    grey = image.mean(0, dtype=np.float64)
    mean, square = (ndimage.uniform_filter(values, 2 * int(radius) + 1) for values in (grey, grey**2))
    weight = np.sqrt((square - mean**2).clip(0)).ravel()
    total = np.cumsum(weight + 0.02 * weight.max() + 1e-9)
    place = int(np.searchsorted(total, rng.uniform(0, total[-1])))
    y, x = divmod(min(place, total.size - 1), width)
    return Drawn(float(y), float(x), radius)


def _patch(image: Image, at: Drawn, rng: np.random.Generator, *, edge: float) -> Mask:
    """An uneven ellipse [H, W]; from its rim inwards it grows to 1 over the share `edge` of its radius."""
    y, x = np.mgrid[: image.shape[1], : image.shape[2]]
    angle, flat = rng.uniform(0, np.pi), rng.uniform(0.5, 1.0)
    along = (x - at.x) * np.cos(angle) + (y - at.y) * np.sin(angle)
    across = ((y - at.y) * np.cos(angle) - (x - at.x) * np.sin(angle)) / flat
    turn = np.arctan2(across, along)
    rim = 1 + sum(rng.uniform(-0.15, 0.15) * np.cos(waves * turn + rng.uniform(0, 2 * np.pi)) for waves in (2, 3, 5))
    inwards = rim * at.radius - np.hypot(along, across)
    # At least a pixel wide: an edge that is sharper than the image's is a defect of its own.
    return (inwards / max(1.0, edge * at.radius)).clip(0, 1).astype(np.float32)
