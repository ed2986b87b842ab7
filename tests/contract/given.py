"""What the checks of the contract look at: pictures, and detectors that are fitted on them once."""

from __future__ import annotations

import copy
from functools import lru_cache

from contract.maker import SIZE_PX, Maker, fit
from textures import textures, with_defects
from torch import Tensor

from models.detector import Detector

FITTED = 28  # normal images of a fit
FEW = 14  # of a fit whose quality does not matter; the last batch is partial


def images(count: int, make: Maker, size_px: tuple[int, int] = SIZE_PX, *, seed: int = 1) -> Tensor:
    return textures(count, *size_px, channels=make.entry.channels, seed=seed)


def anomalous(make: Maker, size_px: tuple[int, int]) -> Tensor | None:
    """What a detector that learns from anomalous images gets: defects on other textures, in other places."""
    if not make.entry.needs_anomalous:
        return None
    return with_defects(images(FITTED, make, size_px, seed=2), seed=2)[0]


@lru_cache(maxsize=32)  # every kind and variant at two sizes: each check goes through all of them
def _fitted(make: Maker, size_px: tuple[int, int]) -> Detector:
    detector = make(size_px)
    fit(detector, images(FITTED, make, size_px, seed=0), anomalous(make, size_px))
    return detector


def fitted(make: Maker, size_px: tuple[int, int] = SIZE_PX) -> Detector:
    """A shortly fitted detector of the caller's own; fits of the same maker are done once."""
    return copy.deepcopy(_fitted(make, size_px))
