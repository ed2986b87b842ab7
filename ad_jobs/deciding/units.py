"""What a run's images are gathered in, in words: studies and series, or folders where all of them are pictures."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

# Words alone are of use to the command line, which then need not wait for tables.
if TYPE_CHECKING:
    from ad_jobs.results.score_table import Rows

# What is decided at each level.
UNITS = {"image": "images", "study": "studies", "series": "series"}
FOLDERS = "folders"
# A transfer syntax of DICOM is a UID (PS3.5 9.1); of a picture its format stands there.
_UID = re.compile(r"[0-9.]+")
_READ = ("transfer_syntax", "modality", "study_uid")


def are_pictures(table: Rows) -> bool:
    """Whether the table's objects are ordinary pictures, such as of parts or boards, and no DICOM is among them.

    Of a table that does not say what any object is it is not known, and False.

    Raises:
        JobError: as `Rows.batches`.
    """
    found = False
    for batch in table.batches(_READ):
        syntaxes = [one for one in batch["transfer_syntax"].unique().to_pylist() if one is not None]
        if any(batch[name].null_count < batch.num_rows for name in _READ[1:]) or any(map(_UID.fullmatch, syntaxes)):
            return False
        found = found or bool(syntaxes)
    return found


def units_of(level: str, table: Rows) -> str:
    """The word for what is decided or judged at a level: images, studies, series, or folders.

    Raises:
        JobError: as `Rows.batches`.
    """
    return FOLDERS if level != "image" and are_pictures(table) else UNITS[level]


def frames_in(units: str) -> str:
    """What they are made of: a picture has one frame, and is an image."""
    return "images" if units == FOLDERS else "frames"


def held_out_units(units: str) -> str:
    """What held-out images are gathered in: pictures by groups of a list, or each alone, and by no folder."""
    return "groups" if units == FOLDERS else units
