"""Counts in words."""

from __future__ import annotations


def counted(count: float, noun: str, plural: str | None = None, spec: str = "") -> str:
    """A count and what is counted, in the singular of one.

    >>> counted(1, "object"), counted(0, "object"), counted(2, "copy", "copies"), counted(1200, "row", spec=",")
    ('1 object', '0 objects', '2 copies', '1,200 rows')
    """
    return f"{count:{spec}} {noun if count == 1 else plural or noun + 's'}"
