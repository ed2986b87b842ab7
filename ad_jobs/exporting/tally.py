"""What became of every selected row: written, or refused and why; none is lost silently."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import Any

from ad_jobs.errors import ErrorCode
from cluster.counting import counted


class Refusal(StrEnum):
    """Why a selected row is not handed on; where its object cannot be fetched or decoded, an ErrorCode says it."""

    NOT_SCORED = "not_scored"
    NO_HEATMAP = "no_heatmap"
    DAMAGED_HEATMAP = "damaged_heatmap"
    CONTENT_CHANGED = "content_changed"
    NOT_DICOM = "not_dicom"
    NO_GEOMETRY = "no_geometry"
    OTHER_STUDY = "other_study"


SENTENCES: dict[str, str] = {
    Refusal.NOT_SCORED: "have no score: nothing is drawn of them",
    Refusal.NO_HEATMAP: "have no heatmap: scan with --heatmaps all to keep every one",
    Refusal.DAMAGED_HEATMAP: "have a heatmap that cannot be read: see retroscan verify",
    Refusal.CONTENT_CHANGED: "are of objects that are not what was scanned (content_sha256)",
    Refusal.NOT_DICOM: "are of ordinary pictures: DICOM is derived from DICOM alone; export these as png",
    Refusal.NO_GEOMETRY: "are of frames without a place in space (frame of reference, position, orientation, spacing), "
    "which a parametric map needs; export these as dicom-sc",
    Refusal.OTHER_STUDY: "are of objects that name another study than the row before them does",
    ErrorCode.NOT_FOUND: "are of objects that are gone from the archive",
}


class Tally:
    """Counts of rows; `selected` is what is written and refused."""

    def __init__(self) -> None:
        self.written = 0
        self.files = 0
        self.refused: Counter[str] = Counter()

    def add(self, refusal: str | None) -> None:
        """Count a row: refused for this reason, or written."""
        if refusal is None:
            self.written += 1
        else:
            self.refused[refusal] += 1

    @property
    def selected(self) -> int:
        """All rows that were to be handed on."""
        return self.written + self.refused.total()

    def told(self) -> dict[str, Any]:
        """The counts by their names in an export's result."""
        refused = {str(reason): count for reason, count in sorted(self.refused.items())}
        return {"selected": self.selected, "written": self.written, "refused": refused, "files": self.files}


def sentence(reason: str, count: int) -> str:
    """A refusal in words."""
    told = SENTENCES.get(reason, "are of objects that cannot be fetched or decoded any more")
    return f"{counted(count, 'row')} refused ({reason}): they {told}"
