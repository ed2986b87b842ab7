"""The objects of a scan by what their headers say: how many of which kind, and what a scan will make of them.

Objects with equal headers are looked at once, however many they are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ad_jobs.archive.headers import HEADER_THREADS, Listed, header_columns
from ad_jobs.archive.manifest import RowReader, read_parts
from ad_jobs.archive.manifest_record import ManifestInfo
from ad_jobs.archive.marks import rows_of
from ad_jobs.errors import ErrorCode
from ad_jobs.planning.outlook import Outlook
from ad_jobs.schema import MANIFEST, MANIFEST_HEADERS

# What objects are counted by; `size` is rows x columns.
FACETS = ("kind", "modality", "transfer_syntax", "bits", "photometric", "size")

_HEADER = (
    *("kind", "modality", "body_part", "sop_class", "rows", "columns", "frames", "bits", "photometric"),
    *("pixel_spacing", "transfer_syntax", "header_error"),
)
_COLUMNS = ("object_id", "bytes", *_HEADER)
_SCHEMA = pa.schema([MANIFEST_HEADERS.field(name) for name in _COLUMNS])
# All that an outlook hangs on; of the bytes only whether there are any, and whether they are too many.
_KEYS = (*(name for name in _HEADER if name != "pixel_spacing"), "spacing_mm", "size_class")
# By their size: of unknown size and all others, none, too many bytes.
_ANY, _EMPTY, _OVER = 0, 1, 2

Judge = Callable[[dict[str, Any]], Outlook]


@dataclass
class Census:
    """What was counted of objects whose headers are known; `read` of them, of `objects` that there are."""

    objects: int
    read: int = 0
    # Of each facet and value: objects, and their bytes as far as they are known.
    facets: dict[str, dict[object, list[int]]] = field(default_factory=dict)
    # By the code that a scan counts an object under; None are scored.
    outcomes: Counter[ErrorCode | None] = field(default_factory=Counter)
    # By code and detail.
    reasons: Counter[tuple[ErrorCode, str]] = field(default_factory=Counter)
    # Of each model: why it refuses objects.
    refused: list[Counter[str]] = field(default_factory=list)
    # How many objects any model will score, and by object id which.
    scored: int = 0
    will_score: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))

    @property
    def is_exact(self) -> bool:
        """Whether all headers are known."""
        return self.read == self.objects


def has_headers(manifest: ManifestInfo) -> bool:
    """Whether a manifest has all columns that a plan looks at: one of an earlier version lacks some."""
    return set(_HEADER) <= set(manifest.names)


def listed_headers(manifest: ManifestInfo, selected: NDArray[np.int64] | None) -> Iterable[pa.Table]:
    """The header columns of a manifest's objects, some rows at a time; of those that are selected, None being all."""
    for piece in read_parts(manifest, _COLUMNS):
        rows = piece.cast(_SCHEMA)
        yield rows if selected is None else rows_of(rows, selected)


def read_headers(manifest: ManifestInfo, ids: NDArray[np.int64]) -> pa.Table:
    """The header columns of some objects, ids ascending, from the first bytes of each.

    Raises:
        JobError: the store refuses the credentials, or was away for too long.
    """
    rows = RowReader(manifest).rows(ids, [name for name in MANIFEST.names if name != "modified"])
    listed = list(map(Listed, rows["uri"].to_pylist(), rows["bytes"].to_pylist(), rows["etag"].to_pylist()))
    with ThreadPoolExecutor(HEADER_THREADS, thread_name_prefix="headers") as pool:
        found = list(pool.map(header_columns, listed))
    headers = [pa.array([one.get(name) for one in found], _SCHEMA.field(name).type) for name in _HEADER]
    return pa.table([rows["object_id"], rows["bytes"], *headers], schema=_SCHEMA)


def count(tables: Iterable[pa.Table], listed: int, objects: int, models: int, max_bytes: int, judge: Judge) -> Census:
    """The census of objects, of which `tables` hold header columns.

    Args:
        tables: of columns as `listed_headers` gives.
        listed: how many objects the manifest has: ids are below.
        objects: how many of them are selected, whose headers are known or not.
        models: how many models a scan has.
        max_bytes: of one object: more are refused.
        judge: what a scan will make of an object with such a header.
    """
    found = Census(objects, facets={name: defaultdict(lambda: [0, 0]) for name in FACETS})
    found.refused = [Counter() for _ in range(models)]
    found.will_score = np.zeros(listed, bool)
    for table in tables:
        found.read += table.num_rows
        for group, ids in _groups(table, max_bytes):
            told = judge(group)
            _add(found, group, told, len(ids))
            if told.is_scored:
                found.scored += len(ids)
                found.will_score[ids] = True
    return found


def _groups(table: pa.Table, max_bytes: int) -> Iterator[tuple[dict[str, Any], NDArray[np.int64]]]:
    """Rows of equal headers, once each: their header, `bytes` of one of them, and their bytes in all; and their ids."""
    size, spacing = table["bytes"], table["pixel_spacing"].combine_chunks()
    size_class = pc.if_else(
        pc.fill_null(pc.equal(size, 0), False),
        _EMPTY,
        pc.if_else(pc.fill_null(pc.greater(size, max_bytes), False), _OVER, _ANY),
    )
    # Between rows, then between columns.
    spacing_mm = pc.max_element_wise(pc.list_element(spacing, 0), pc.list_element(spacing, 1))
    keyed = table.drop_columns(["pixel_spacing"]).append_column("spacing_mm", pa.chunked_array([spacing_mm]))
    keyed = keyed.append_column("size_class", size_class)
    grouped = keyed.group_by(list(_KEYS), use_threads=False).aggregate(
        [("object_id", "list"), ("bytes", "sum"), ("bytes", "max")]
    )
    headers = grouped.drop_columns(["object_id_list"]).to_pylist()
    for row, ids in zip(headers, grouped["object_id_list"], strict=True):
        yield {**row, "bytes": row.pop("bytes_max")}, ids.values.to_numpy()


def _add(found: Census, group: dict[str, Any], told: Outlook, objects: int) -> None:
    size = None if group["rows"] is None else f"{group['rows']} x {group['columns']}"
    for name in FACETS:
        entry = found.facets[name][size if name == "size" else group[name]]
        entry[0] += objects
        entry[1] += group["bytes_sum"] or 0
    found.outcomes[told.outcome] += objects
    if told.code is not None:
        found.reasons[told.code, told.detail] += objects
    for reasons, why in zip(found.refused, told.refused, strict=False):
        if why is not None:
            reasons[why] += objects
