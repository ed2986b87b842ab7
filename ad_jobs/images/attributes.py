"""Attributes of a DICOM data set as plain numbers and items, and what of them a message may repeat.

A data set is anything with pydicom's access by keyword.
"""

from __future__ import annotations

import re
from math import isfinite
from typing import Any

from ad_jobs.errors import ErrorCode, ImageError


def integer(ds: Any, keyword: str, default: int | None = None) -> int:
    """An attribute's first value as a whole number, `default` if it is absent or empty.

    Raises:
        ImageError: absent or empty, and there is no default; or no whole number.
    """
    found = numbers(ds, keyword)
    if not found:
        if default is None:
            raise ImageError(ErrorCode.CORRUPT, f"{keyword} is missing")
        return default
    if found[0] is None or found[0] != int(found[0]):
        raise ImageError(ErrorCode.CORRUPT, f"{keyword} is no whole number")
    return int(found[0])


def numbers(ds: Any, keyword: str) -> list[float | None]:
    """An attribute's values, None for each that is no finite number; absent and empty are []."""
    try:
        value = ds.get(keyword)
    except (ValueError, TypeError, OverflowError):
        # One of them is no number: pydicom then gives none of them.
        value = ds.get_item(keyword).value
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    if isinstance(value, str):
        value = value.strip(" \x00").split("\\")
    if value is None or value == [""]:
        return []
    return [_number(one) for one in (value if hasattr(value, "__iter__") else [value])]


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return number if isfinite(number) else None


def functional_group(ds: Any, frame: int, keyword: str) -> Any:
    """The item of a functional group macro that holds for `frame` (PS3.3 C.7.6.16), or None."""
    frames = ds.get("PerFrameFunctionalGroupsSequence") or []
    shared = ds.get("SharedFunctionalGroupsSequence") or []
    for group in [*frames[frame : frame + 1], *shared[:1]]:
        if group.get(keyword):
            return group[keyword].value[0]
    return None


def is_implicit(item: Any) -> bool:
    """Whether the value representations of a data set or item were looked up, not read (PS3.5 7.1.3)."""
    return getattr(item, "original_encoding", (None, None))[0] is not False


def uid_in_message(value: str) -> str:
    """A UID for a message; anything that is none (PS3.5 9.1) is not repeated."""
    return value if re.fullmatch(r"[0-9.]{1,64}", value) else "unknown"
