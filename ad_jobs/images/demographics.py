"""A patient's age and sex, as coarse as a table may hold them: an age only by the band of five years that it is in.

What they are computed from (age, birth date, day of the study) stays here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from ad_jobs.images.representation import one_of

DEMOGRAPHIC_ATTRIBUTES = ("PatientAge", "PatientBirthDate", "PatientSex", "StudyDate")

BAND_YEARS = 5
# One band from here on: few are as old, and each of them could be told by it.
OLDEST_BAND = 90
# PS3.3 C.7.1.1.
_SEXES = ("M", "F", "O")
# AS, PS3.5 6.2: a number of days, weeks, months or years; leading zeros are often left out.
_AGE = re.compile(r"(\d{1,3})([DWMY])")
_YEAR = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}
# DA, PS3.5 6.2, also as before DICOM with dots.
_DATE = re.compile(r"(\d{4})([.]?)(\d\d)\2(\d\d)")


def demographic_columns(values: Mapping[str, Any]) -> dict[str, object]:
    """The columns of schema.DEMOGRAPHICS from the values of DEMOGRAPHIC_ATTRIBUTES that an object has."""
    return {"age_band": age_band(age_years(values)), "sex": one_of(values, "PatientSex", _SEXES)}


def age_years(values: Mapping[str, Any]) -> int | None:
    """Completed years at the study: Patient's Age (0010,1010), else from birth and study date; None if not known."""
    if stated := _AGE.fullmatch(_text(values, "PatientAge")):
        return int(int(stated[1]) / _YEAR[stated[2]])
    born, studied = _day(values, "PatientBirthDate"), _day(values, "StudyDate")
    if born is None or studied is None or studied < born:
        return None
    birthday_to_come = (studied.month, studied.day) < (born.month, born.day)
    return studied.year - born.year - birthday_to_come


def age_band(years: int | None) -> str | None:
    """The band that an age is in.

    >>> age_band(7), age_band(89), age_band(104)
    ('05-09', '85-89', '90+')
    """
    if years is None:
        return None
    if years >= OLDEST_BAND:
        return f"{OLDEST_BAND}+"
    first = years - years % BAND_YEARS
    return f"{first:02}-{first + BAND_YEARS - 1:02}"


def _day(values: Mapping[str, Any], keyword: str) -> date | None:
    found = _DATE.fullmatch(_text(values, keyword))
    try:
        return date(int(found[1]), int(found[3]), int(found[4])) if found else None
    except ValueError:
        # The 30th of February.
        return None


def _text(values: Mapping[str, Any], keyword: str) -> str:
    value = values.get(keyword)
    return value.strip(" \x00") if isinstance(value, str) else ""
