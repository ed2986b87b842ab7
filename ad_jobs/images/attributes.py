"""Attributes of a DICOM data set as plain numbers and items, and what of them a message may repeat.

A data set is anything with pydicom's access by keyword.
"""

from __future__ import annotations

import re
from typing import Any

from ad_jobs.errors import ErrorCode, ImageError


def integer(ds: Any, keyword: str, default: int | None = None) -> int:
    """An attribute as a whole number, `default` if it is absent or empty.

    Raises:
        ImageError: absent or empty, and there is no default.
    """
    value = ds.get(keyword)
    if value is None or value == "":
        if default is None:
            raise ImageError(ErrorCode.CORRUPT, f"{keyword} is missing")
        return default
    return int(value)


def numbers(value: Any) -> list[float]:
    """An attribute's value of any multiplicity as a list; absent and empty are []."""
    if value is None or value == "":
        return []
    many = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    return [float(number) for number in many if number is not None and number != ""]


def functional_group(ds: Any, frame: int, keyword: str) -> Any:
    """The item of a functional group macro that holds for `frame` (PS3.3 C.7.6.16), or None."""
    frames = ds.get("PerFrameFunctionalGroupsSequence") or []
    shared = ds.get("SharedFunctionalGroupsSequence") or []
    for group in [*frames[frame : frame + 1], *shared[:1]]:
        if group.get(keyword):
            return group[keyword].value[0]
    return None


def uid_in_message(value: str) -> str:
    """A UID for a message; anything that is none (PS3.5 9.1) is not repeated."""
    return value if re.fullmatch(r"[0-9.]{1,64}", value) else "unknown"


def photometric_in_message(value: str) -> str:
    """A photometric interpretation for a message, if it is one that PS3.3 C.7.6.3.1.2 knows."""
    return value if re.fullmatch(r"(YBR|RGB|HSV|ARGB|CMYK|XYB|PALETTE)[A-Z0-9_ ]{0,16}", value) else "unknown"
