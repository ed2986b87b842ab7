"""Patients of a phantom archive: each has a head, a scanner, identifiers, and a random stream of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ad_jobs.phantom.anatomy import Head, draw_slice
from ad_jobs.phantom.identifiers import Person, Planted, Visit
from ad_jobs.phantom.lesions import add_lesion
from ad_jobs.phantom.objects import Study
from ad_jobs.phantom.scanners import SCANNERS, Acquired, acquire

# Of a patient.
SLICES = 5
# From the basal ganglia to near the crown.
LEVELS = (0.0, 0.8)
# Part of each patient's seed: never renumbered.
_SPLITS = {"train": 1, "calibration": 2, "archive": 3}


@dataclass
class Patient:
    """One patient of a split, with a random stream of their own: no other patient's number depends on it."""

    split: str
    number: int
    rng: np.random.Generator
    head: Head
    study: Study
    planted: Planted

    def picture(self, level: float, size_px: int, lesion: bool) -> tuple[Acquired, NDArray[np.bool_] | None]:
        """A slice as the scanner stores it, and its mask if there is a lesion."""
        rows, columns = self.study.scanner.matrix(size_px)
        healthy = draw_slice(self.head, level, rows, columns, self.rng)
        if not lesion:
            return acquire(healthy.signal, self.study.scanner, self.rng), None
        grown = add_lesion(healthy, self.rng)
        return acquire(grown.signal, self.study.scanner, self.rng), grown.mask

    def syntax(self, number: int) -> str:
        """The transfer syntax of the patient's n-th object."""
        choice = self.study.scanner.syntaxes
        return choice[(self.number // len(SCANNERS) + number) % len(choice)]

    def level(self, slice_number: int) -> float:
        """Where a slice lies: they go up through the head, never at quite the same levels."""
        low, high = LEVELS
        at = low + (high - low) * slice_number / (SLICES - 1)
        return float(np.clip(at + self.rng.normal(0.0, 0.04), low, high))

    @property
    def folder(self) -> str:
        """Where an export keeps the patient's study, relative to the archive; one ward's name has a space in it."""
        site = ("site-a", "site-b", "ward 3", "site-b")[self.number % 4]
        return f"{site}/study-{self.number:04d}"


def patients(split: str, seed: int) -> Iterator[Patient]:
    """Patients of a split without end, the scanners in turn."""
    number = 0
    while True:
        rng = np.random.default_rng([seed, _SPLITS[split], number])
        planted = Planted()
        person, visit = Person.draw(rng, planted), Visit.draw(rng, planted)
        study = Study(f"{seed}/{split}/{number}", person, visit, SCANNERS[number % len(SCANNERS)])
        yield Patient(split, number, rng, Head.draw(rng), study, planted)
        number += 1
