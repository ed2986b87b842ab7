"""An export of frames: what is fetched, what is made of it in each format, and what its files are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ad_jobs.exporting.delivery import Folder
from ad_jobs.exporting.frames import Task, one_by_one, study_by_study, unscored, without_heatmap
from ad_jobs.exporting.key_rows import key_rows
from ad_jobs.exporting.originals import Original, Row
from ad_jobs.exporting.overlay import Reader, png
from ad_jobs.exporting.selection import BY_OBJECT, BY_STUDY, Selection, frame_rows
from ad_jobs.exporting.tally import Tally
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.heatmaps import member_name
from ad_jobs.results.run import versions
from ad_jobs.run_specs import ExportSpec

if TYPE_CHECKING:
    from ad_jobs.exporting.dicom_header import Header
    from ad_jobs.exporting.dicom_made import Maker


def export_pictures(spec: ExportSpec, selection: Selection, asked: dict[str, Any], tally: Tally) -> None:
    """Write the selected frames into a folder that records what was asked.

    Raises:
        UsageError: the folder holds something else; the manifest of a run that hides its objects is not there.
        JobError: as `export`.
    """
    record = selection.record
    archive = None
    if record.config.get("identifiers") == "hashed":
        from ad_jobs.verifying.run_archive import RunArchive

        archive = RunArchive(selection.run_uri, record, spec.manifest)
    limits = Limits.model_validate(record.config.get("limits", {}))
    task = Task(Folder(spec.out, asked), tally, archive, limits.max_bytes)
    readers = {
        model.model_id: Reader(selection.run_uri, PixelPolicy.model_validate(model.policy), limits)
        for model in record.models
    }
    if spec.format == "dicom-ko":
        _key_objects(task, key_rows(selection), _Deriving(spec, selection, readers))
    elif spec.format == "dicom-sr":
        with frame_rows(selection, BY_STUDY) as rows:
            _reports(task, rows, _Deriving(spec, selection, readers))
    else:
        with frame_rows(selection, BY_OBJECT) as rows:
            if spec.format == "png":
                _overlays(task, rows, readers)
            else:
                one_by_one(task, rows, without_heatmap, _Deriving(spec, selection, readers).image)


def _overlays(task: Task, rows: Iterable[Row], readers: dict[str, Reader]) -> None:
    several = len(readers) > 1

    def make(row: Row, original: Original, _: int) -> tuple[str, bytes]:
        name = member_name(row["object_id"], row["frame"], row["model_id"] if several else None)
        return name, png(readers[row["model_id"]].overlaid(row, original.data))

    one_by_one(task, rows, without_heatmap, make)


class _Deriving:
    """DICOM objects derived from those of the frames; a header is read once for the frames of one object."""

    def __init__(self, spec: ExportSpec, selection: Selection, readers: dict[str, Reader]) -> None:
        from ad_jobs.exporting.dicom_header import Header
        from ad_jobs.exporting.dicom_made import Maker

        record, decision = selection.record, selection.decision
        self.maker: Maker = Maker(
            format=spec.format,
            version=versions()["retroscan"],
            run_id=record.run_id,
            run_digest=record.digest or "",
            decision_id=spec.decision,
            moment=record.ended_at if decision is None else datetime.fromisoformat(decision["decided_at"]),
            models=tuple(record.models),
        )
        self.readers = readers
        self.numbers: Counter[tuple[str, str | None]] = Counter()
        self._read = Header
        self._last: tuple[bytes, Header] | None = None

    def header(self, original: Original) -> Header:
        """The header of an object."""
        if self._last is None or self._last[0] is not original.data:
            self._last = (original.data, self._read(original.data))
        return self._last[1]

    def image(self, row: Row, original: Original, number: int) -> tuple[str, bytes]:
        """The name and the bytes of an image that is derived from a frame."""
        from ad_jobs.exporting.dicom_pm import parametric_map
        from ad_jobs.exporting.dicom_sc import secondary_capture

        header, reader = self.header(original), self.readers[row["model_id"]]
        if self.maker.format == "dicom-sc":
            _, data = secondary_capture(self.maker, header, row, reader.overlaid(row, original.data), number)
        else:
            _, data = parametric_map(self.maker, header, row, reader.heatmap(row), number)
        return member_name(row["object_id"], row["frame"], row["model_id"]).replace(".png", ".dcm"), data

    def number(self, header: Header, model_id: str | None) -> int:
        """The next document's place in its series."""
        self.numbers[whose := (header.study, model_id)] += 1
        return self.numbers[whose]


def _reports(task: Task, rows: Iterable[Row], deriving: _Deriving) -> None:
    from ad_jobs.exporting.dicom_sr import Told, report
    from ad_jobs.exporting.region import outline

    def read(row: Row, original: Original) -> Told:
        header = deriving.header(original)
        region = None
        if row["heatmap"] is not None:
            region = outline(deriving.readers[row["model_id"]].heatmap(row))
        return Told(row, header, region)

    def make(frames: list[Told]) -> tuple[str, bytes]:
        first, model_id = frames[0], frames[0].row["model_id"]
        uid, data = report(deriving.maker, frames, deriving.number(first.header, model_id))
        return f"{uid}.dcm", data

    study_by_study(task, rows, unscored, read, make)


def _key_objects(task: Task, rows: Iterable[Row], deriving: _Deriving) -> None:
    from ad_jobs.exporting.dicom_ko import Noted, key_objects

    def read(row: Row, original: Original) -> Noted:
        return Noted(row, deriving.header(original))

    def make(frames: list[Noted]) -> tuple[str, bytes]:
        uid, data = key_objects(deriving.maker, frames, deriving.number(frames[0].header, None))
        return f"{uid}.dcm", data

    study_by_study(task, rows, lambda _: None, read, make)
