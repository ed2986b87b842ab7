"""What of a DICOM header may reach a table: an allow-list of attributes, and the columns made of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ad_jobs.images.picture import empty_header
from ad_jobs.images.pixel_module import named_photometric

# Nothing else of a header is read for a table: no name, id, birth date, accession number or free text.
HEADER_ATTRIBUTES = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "Modality",
    "Manufacturer",
    "StudyDate",
    "Rows",
    "Columns",
    "BitsStored",
    "PhotometricInterpretation",
)
_MONTH = re.compile(r"((?:19|20)\d\d)[.\-]?(0[1-9]|1[0-2])")
# No UI, LO or CS is longer.
_MAX_CHARACTERS = 64


def header_columns(values: Mapping[str, Any], syntax: str) -> dict[str, object]:
    """The columns of schema.HEADER from the values of HEADER_ATTRIBUTES that an object has."""
    month = _MONTH.match(_text(values, "StudyDate") or "")
    return empty_header(
        study_uid=_text(values, "StudyInstanceUID"),
        series_uid=_text(values, "SeriesInstanceUID"),
        sop_uid=_text(values, "SOPInstanceUID"),
        modality=_text(values, "Modality"),
        manufacturer=_text(values, "Manufacturer"),
        study_month=f"{month[1]}-{month[2]}" if month else None,
        rows=_number(values, "Rows", 65535),
        columns=_number(values, "Columns", 65535),
        bits=_number(values, "BitsStored", 64),
        photometric=_known(values, "PhotometricInterpretation", named_photometric),
        transfer_syntax=syntax or None,
    )


def _text(values: Mapping[str, Any], keyword: str) -> str | None:
    """A value as text, None if absent or empty."""
    value = values.get(keyword)
    return None if value is None else str(value).strip().strip("\x00")[:_MAX_CHARACTERS] or None


def _known(values: Mapping[str, Any], keyword: str, name: Callable[[str], str | None]) -> str | None:
    """A value of a fixed list as it is spelt, None if it is none of it: whatever else stands there may be a name."""
    found = _text(values, keyword)
    return found if found is not None and name(found) is not None else None


def _number(values: Mapping[str, Any], keyword: str, most: int) -> int | None:
    """A value as a number of 0 to `most`, None if it is absent or anything else."""
    try:
        number = int(values[keyword])
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    return number if 0 <= number <= most else None
