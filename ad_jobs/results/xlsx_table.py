"""Rows as a workbook of Excel (ECMA-376): typed cells, a frozen header, no formulas; the same rows, the same bytes."""

from __future__ import annotations

import re
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ad_jobs.archive.sql import Stream
from ad_jobs.errors import UsageError
from cluster.counting import counted

# Of a worksheet, its header among them.
MAX_ROWS = 1_048_576
# What XML 1.0 cannot hold or a reader may change, and what would be read as such an escape (ECMA-376 part 1, 22.9.2.19,
# ST_Xstring): written as _xHHHH_, which Excel shows as the character.
_ESCAPED = re.compile("[\x00-\x08\x0b\x0c\x0d\x0e-\x1f\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)")
# The least that a ZIP can say.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_CORE = "docProps/core.xml"
_STAMP = re.compile(rb"(<dcterms:(?:created|modified)[^>]*>)[^<]*")


def write_xlsx(stream: Stream, path: Path) -> int:
    """Write a header and all rows into one worksheet; how many there were. Every text is read back as it was.

    Raises:
        UsageError: more rows than a worksheet holds.
    """
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.styles import Font

    book = Workbook(write_only=True)
    sheet = book.create_sheet("rows")
    sheet.freeze_panes = "A2"
    head = [WriteOnlyCell(sheet, name) for name in stream.schema.names]
    for name in head:
        name.font = Font(bold=True)
    sheet.append(head)

    def cell(value: Any) -> Any:
        if not isinstance(value, str):
            # Excel knows no zones: times are in UTC.
            return value.replace(tzinfo=None) if isinstance(value, datetime) else value
        made = WriteOnlyCell(sheet, _ESCAPED.sub(lambda found: f"_x{ord(found[0]):04X}_", value))
        # Whatever it begins with.
        made.data_type = "s"
        return made

    rows = 0
    for batch in stream.batches:
        rows += batch.num_rows
        if rows >= MAX_ROWS:
            sheet.close()
            raise UsageError(
                f"A worksheet holds {counted(MAX_ROWS - 1, 'row', spec=',')} below its header.",
                f"{counted(rows, 'row', spec=',')} or more",
                "Export --format csv, or the highest with --top.",
            )
        for row in zip(*map(_values, batch.columns), strict=True):
            sheet.append([cell(value) for value in row])
    raw = path.with_suffix(".raw")
    book.save(raw)
    _without_times(raw, path)
    raw.unlink()
    return rows


def _values(column: pa.Array) -> list[Any]:
    """A column's values; of float32 the shortest decimal number that reads back as it, which a cell has in double."""
    if not pa.types.is_float32(column.type):
        found: list[Any] = column.to_pylist()
        return found
    return [None if text is None else float(text) for text in pc.cast(column, pa.string()).to_pylist()]


def _without_times(raw: Path, path: Path) -> None:
    """The same workbook, which says nothing of when it was written."""
    with zipfile.ZipFile(raw) as found, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for entry in found.infolist():
            info = zipfile.ZipInfo(entry.filename, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            with found.open(entry) as source, made.open(info, "w", force_zip64=True) as target:
                if entry.filename == _CORE:
                    target.write(_STAMP.sub(rb"\g<1>1980-01-01T00:00:00Z", source.read()))
                    continue
                while piece := source.read(1 << 20):
                    target.write(piece)
