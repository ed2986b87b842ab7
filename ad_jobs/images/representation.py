"""Values of a DICOM header, taken where they are what their value representation allows (PS3.5 6.2), else left out.

A header is written by many hands, and anything may stand in any element: what breaks the rules of its representation
may be a sentence about a patient, and reaches no manifest.
`values` are what pydicom made of the elements, by keyword.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

# CS: capitals, digits, space and underscore, at most 16 of them.
_CODE = re.compile(r"[A-Z0-9 _]{1,16}")
# LO: at most 64 characters, no control characters, and no backslash, which separates values.
_LONG = re.compile(r"[^\x00-\x1f\x7f-\x9f\\]{1,64}")
# UI: at most 64 digits and dots.
_UID = re.compile(r"[0-9.]{1,64}")
# No standard image type has more values than a handful.
_MOST_CODES = 16
# IS: what a signed number of 32 bits holds.
_MOST = 2**31 - 1


def code(values: Mapping[str, Any], keyword: str) -> str | None:
    """The one value of a CS element."""
    return _matching(_CODE, values.get(keyword))


def codes(values: Mapping[str, Any], keyword: str) -> str | None:
    """The values of a CS element with backslashes between them; the place of one that is no code string stays empty."""
    value: Any = values.get(keyword)
    several = [value] if isinstance(value, str) else list(value) if hasattr(value, "__iter__") else []
    found = [_matching(_CODE, one) or "" for one in several[:_MOST_CODES]]
    return "\\".join(found) if any(found) else None


def one_of(values: Mapping[str, Any], keyword: str, known: tuple[str, ...]) -> str | None:
    """The one value of a CS element that has enumerated values (PS3.3), where it is one of them."""
    found = code(values, keyword)
    return found if found in known else None


def long_string(values: Mapping[str, Any], keyword: str) -> str | None:
    """The one value of an LO element."""
    return _matching(_LONG, values.get(keyword))


def uid(value: Any) -> str | None:
    """A value of UI, or of the file meta information."""
    return _matching(_UID, value)


def integer(values: Mapping[str, Any], keyword: str) -> int | None:
    """The one value of an IS element."""
    try:
        number = int(values[keyword])
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    return number if -_MOST - 1 <= number <= _MOST else None


def decimals(values: Mapping[str, Any], keyword: str, count: int) -> list[float] | None:
    """The values of a DS element, where there are `count` of them and all are finite."""
    value: Any = values.get(keyword)
    try:
        found = [float(one) for one in (value if hasattr(value, "__iter__") else [value])]
    except (ValueError, TypeError, OverflowError):
        return None
    return found if len(found) == count and all(map(isfinite, found)) else None


def _matching(pattern: re.Pattern[str], value: Any) -> str | None:
    # What is no text was read by another representation than its own.
    if not isinstance(value, str):
        return None
    # Padded to an even length by a space, UI by a null (PS3.5 6.2).
    text = value.strip(" \x00")
    return text if pattern.fullmatch(text) else None
