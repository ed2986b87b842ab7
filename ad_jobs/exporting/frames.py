"""Selected frames, one by one or study by study, into the files of an export; every row is told of in its index."""

from __future__ import annotations

import csv
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from ad_jobs.archive.progress import Watch
from ad_jobs.exporting.delivery import Folder
from ad_jobs.exporting.originals import Original, Refused, Row, originals
from ad_jobs.exporting.selection import SELECTED
from ad_jobs.exporting.tally import Refusal, Tally
from ad_jobs.results.csv_table import text, writing
from ad_jobs.schema import SCORED

if TYPE_CHECKING:
    from ad_jobs.exporting.dicom_header import Header
    from ad_jobs.verifying.run_archive import RunArchive

log = logging.getLogger("retroscan.export")

# What the index says of each row, beside `file` and `refused`.
INDEX = ("object_id", "frame", "model_id", "uri", "score", "threshold", "flagged")


class OfAnObject(Protocol):
    """What is taken of a frame's object."""

    @property
    def header(self) -> Header: ...


Part = TypeVar("Part", bound=OfAnObject)


class Task(NamedTuple):
    """Where rows are handed on to: the folder, the counts, and what objects are fetched by."""

    folder: Folder
    tally: Tally
    archive: RunArchive | None
    max_bytes: int


class Index:
    """The list of all rows of an export, with the file that each is in or why it is in none."""

    def __init__(self, lines: csv.DictWriter[str], tally: Tally, watch: Watch) -> None:
        self._lines, self._tally, self._watch = lines, tally, watch

    def add(self, row: Row, file: str | None, refused: str | None = None) -> None:
        """A row, which is counted; in a file, or refused."""
        told = {name: text(row[name]) for name in INDEX}
        self._lines.writerow({**told, "file": file, "refused": refused})
        self._tally.add(refused)
        self._watch.advance()


@contextmanager
def indexed(task: Task, rows: Iterable[Row]) -> Iterator[tuple[Index, Iterator[Row]]]:
    """An index to add rows to, and the rows; when the block ends well it is written, and the export has its record."""
    coming = iter(rows)
    first = next(coming, None)
    coming = coming if first is None else itertools.chain([first], coming)
    watch = Watch(0 if first is None else int(first[SELECTED]), "rows handed on", log)
    with TemporaryDirectory(prefix="retroscan-export-") as temporary, watch:
        path = Path(temporary) / "index.csv"
        with writing(path) as file:
            lines = csv.DictWriter(file, [*INDEX, "file", "refused"])
            lines.writeheader()
            yield Index(lines, task.tally, watch), coming
        task.folder.finish(path, task.tally.told())


def one_by_one(
    task: Task,
    rows: Iterable[Row],
    before: Callable[[Row], str | None],
    make: Callable[[Row, Original, int], tuple[str, bytes]],
) -> None:
    """Write a file for each frame: `make` gives its name and its bytes, or raises Refused.

    It is told which of its study and model the frame is, from 1, refused ones counted.
    """
    numbers: Counter[tuple[str, str]] = Counter()
    with indexed(task, rows) as (index, coming):
        for original in originals(coming, task.archive, task.max_bytes, before):
            for row in original.rows:
                numbers[whose := _whose(row)] += 1
                try:
                    if original.refused is not None:
                        raise Refused(original.refused)
                    name, data = make(row, original, numbers[whose])
                except Refused as refused:
                    index.add(row, None, refused.reason)
                    continue
                task.folder.write(name, data)
                task.tally.files += 1
                index.add(row, name)


def study_by_study(
    task: Task,
    rows: Iterable[Row],
    before: Callable[[Row], str | None],
    read: Callable[[Row, Original], Part],
    make: Callable[[list[Part]], tuple[str, bytes]],
) -> None:
    """Write a file for the frames of each study and model, which come one after the other.

    `read` takes from a frame's object what the file needs, and `make` gives the file's name and its bytes.
    """
    with indexed(task, rows) as (index, coming):
        for _, group in itertools.groupby(_parts(task, coming, before, read), lambda found: _whose(found[0])):
            kept: list[tuple[Row, Part]] = []
            for row, part in group:
                if isinstance(part, Refused):
                    index.add(row, None, part.reason)
                elif kept and part.header.study != kept[0][1].header.study:
                    index.add(row, None, Refusal.OTHER_STUDY)
                else:
                    kept.append((row, part))
            if kept:
                name, data = make([part for _, part in kept])
                task.folder.write(name, data)
                task.tally.files += 1
                for row, _ in kept:
                    index.add(row, name)


def _parts(
    task: Task, rows: Iterable[Row], before: Callable[[Row], str | None], read: Callable[[Row, Original], Part]
) -> Iterator[tuple[Row, Part | Refused]]:
    for original in originals(rows, task.archive, task.max_bytes, before):
        for row in original.rows:
            if original.refused is not None:
                yield row, Refused(original.refused)
                continue
            try:
                yield row, read(row, original)
            except Refused as refused:
                yield row, refused


def _whose(row: Row) -> tuple[str, str]:
    """The model and the study of a row; an object whose study the run hides is one by itself."""
    return str(row["model_id"]), row["study_uid"] or f"object {row['object_id']}"


def unscored(row: Row) -> str | None:
    """Why nothing can be told of a row."""
    return None if row["status"] == SCORED else Refusal.NOT_SCORED


def without_heatmap(row: Row) -> str | None:
    """Why nothing can be drawn of a row."""
    return unscored(row) or (Refusal.NO_HEATMAP if row["heatmap"] is None else None)
