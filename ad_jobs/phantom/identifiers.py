"""Invented identifiers in every phantom, so that a leak into outputs, logs or reports can be searched for.

Each is a random word, number or date that occurs nowhere else; dates are few, because eight digits turn up by chance in
long outputs.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

_BIRTH_DATES = ("19030228", "19110417", "19070930")
_CLINIC_DATES = {"20140317": "143907", "20151123": "091653", "20160805": "172241"}


@dataclass
class Planted:
    """Draws identifiers and remembers every one of them, in the order of their first use."""

    words: list[str] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)

    def keep(self, value: str) -> str:
        """`value`, remembered."""
        self.add([value])
        return value

    def add(self, values: Iterable[str]) -> None:
        """Remember the values that are new."""
        for value in values:
            if value not in self._known:
                self._known.add(value)
                self.words.append(value)

    def word(self, rng: np.random.Generator) -> str:
        """A name such as no language has."""
        letters = rng.choice(list(string.ascii_lowercase), 8)
        return self.keep("Qz" + "".join(letters))

    def number(self, rng: np.random.Generator) -> str:
        """A number with a prefix, at most 16 characters (VR SH)."""
        return self.keep(f"QZ{rng.integers(10**9, 10**10)}")


@dataclass(frozen=True)
class Person:
    """A patient's identifying attributes, by DICOM keyword."""

    attributes: dict[str, str]

    @staticmethod
    def draw(rng: np.random.Generator, planted: Planted) -> Person:
        """A random patient."""
        family, given = planted.word(rng), planted.word(rng)
        return Person(
            {
                "PatientName": f"{family}^{given}",
                "PatientID": planted.number(rng),
                "OtherPatientIDs": planted.number(rng),
                "PatientBirthDate": planted.keep(_BIRTH_DATES[rng.integers(len(_BIRTH_DATES))]),
                "PatientAddress": f"{planted.word(rng)} Street 7",
                "PatientTelephoneNumbers": planted.number(rng),
                "PatientComments": f"Called back by {planted.word(rng)}",
            }
        )


@dataclass(frozen=True)
class Visit:
    """A study's identifying attributes: by DICOM keyword, and the values of the private group."""

    attributes: dict[str, str]
    private: list[str]

    @staticmethod
    def draw(rng: np.random.Generator, planted: Planted) -> Visit:
        """A random study."""
        date = list(_CLINIC_DATES)[rng.integers(len(_CLINIC_DATES))]
        return Visit(
            {
                "StudyDate": planted.keep(date),
                "SeriesDate": date,
                "AcquisitionDate": date,
                "ContentDate": date,
                "StudyTime": _CLINIC_DATES[date],
                "AccessionNumber": planted.number(rng),
                "StudyID": planted.number(rng),
                "StudyDescription": f"Head for {planted.word(rng)}",
                "SeriesDescription": f"Axial, {planted.word(rng)}",
                "ProtocolName": f"Protocol {planted.word(rng)}",
                "ReferringPhysicianName": f"{planted.word(rng)}^{planted.word(rng)}",
                "PerformingPhysicianName": f"{planted.word(rng)}^Dr",
                "OperatorsName": f"{planted.word(rng)}^Op",
                "InstitutionalDepartmentName": f"{planted.word(rng)} Ward",
                "InstitutionAddress": f"{planted.word(rng)} Square 1",
                "StationName": planted.number(rng),
                "DeviceSerialNumber": planted.number(rng),
                "RequestedProcedureDescription": f"Request by {planted.word(rng)}",
                "ImageComments": f"Seen by {planted.word(rng)}",
            },
            private=[planted.word(rng), planted.number(rng)],
        )
