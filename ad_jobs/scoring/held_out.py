"""The scores that a calibration came from: with them another rule can be had, and no image is scored again.

They name no image: an object is the digest of its bytes, a group and a series are numbers.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ad_jobs.errors import UsageError
from ad_jobs.schema import MANIFEST_HEADERS
from cluster import storage

# Of the object's header, by which held-out images may be told apart (`decide --by`). No identifier is among them.
HEADER = pa.schema(
    [
        MANIFEST_HEADERS.field(name)
        for name in (
            *("modality", "body_part", "manufacturer", "model", "study_month"),
            *("rows", "columns", "bits", "photometric", "transfer_syntax"),
        )
    ]
)
HELD_OUT = pa.schema(
    [
        # SHA-256 over its bytes, hexadecimal; the table of a run has it as content_sha256.
        ("object", pa.string()),
        ("frame", pa.int32()),
        # Frames with one number were held out together: of a study, a patient, a part.
        ("group", pa.int32()),
        ("anomalous", pa.bool_()),
        ("score", pa.float32()),
        # Frames with one number are of one series, else of one group. Earlier versions kept neither it nor the header.
        ("series", pa.int32()),
        *HEADER,
    ]
)
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class HeldOut(NamedTuple):
    """A held-out frame, uint16 [c, H, W], with the digest of its object's bytes and what it was held out with."""

    pixels: NDArray[np.uint16]
    object: str = ""
    frame: int = 0
    # By itself where there is none.
    group: str = ""
    # Of a frame without one the group.
    series: str = ""
    # What is known of HEADER.
    header: Mapping[str, Any] = _NOTHING

    @property
    def origin(self) -> Origin:
        """Where it is from, without its pixels."""
        return Origin(self.object, self.frame, self.group, self.series, self.header)


class Origin(NamedTuple):
    """Where a held-out frame is from: as in HeldOut."""

    object: str
    frame: int
    group: str
    series: str
    header: Mapping[str, Any]

    def scored(self, anomalous: bool, score: float) -> Scored:
        """The frame with what it scored."""
        return Scored(self.object, self.frame, self.group, anomalous, score, self.series, self.header)


class Scored(NamedTuple):
    """What is kept of a held-out frame."""

    object: str
    frame: int
    group: str
    anomalous: bool
    score: float
    series: str = ""
    header: Mapping[str, Any] = _NOTHING


def to_parquet(scored: Iterable[Scored]) -> bytes:
    """A file of HELD_OUT, in the order given."""
    groups: dict[str, int] = {}
    series: dict[str, int] = {}
    rows = []
    for place, one in enumerate(scored):
        alone = f"alone {place}"
        numbers = {
            "group": groups.setdefault(one.group or alone, len(groups)),
            "series": series.setdefault(one.series or one.group or alone, len(series)),
        }
        rows.append({**kept(one.header), **one._asdict(), **numbers})
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, HELD_OUT), file, compression="zstd")
    return file.getvalue()


def kept(header: Mapping[str, Any]) -> dict[str, Any]:
    """What of a decoder's header goes into a calibration: HEADER."""
    return {name: header.get(name) for name in HEADER.names}


def held_out_file(uri: str, sha256: str) -> bytes:
    """A file of held-out scores as it lies there.

    Raises:
        UsageError: it is gone, or is another file than the one with this digest.
    """
    try:
        body = storage.read_bytes(uri)
    except storage.NotFound as error:
        raise _changed(uri, "no such file") from error
    if hashlib.sha256(body).hexdigest() != sha256:
        raise _changed(uri, "another digest than its calibration tells")
    return body


def read_held_out(uri: str, sha256: str) -> pa.Table:
    """The held-out scores in a file: HELD_OUT, or as many of its columns as an earlier version kept.

    Raises:
        UsageError: as `held_out_file`.
    """
    table = pq.read_table(io.BytesIO(held_out_file(uri, sha256)))
    there = pa.schema([field for field in HELD_OUT if field.name in table.column_names])
    return table.select(there.names).cast(there)


def _changed(uri: str, what: str) -> UsageError:
    return UsageError(
        "The scores that a calibration came from stay beside it, unchanged.",
        f"{uri}: {what}",
        "Restore it: a model is copied with its folder calibrations/. Of a calibration.json that was edited, take out "
        "held_out_sha256: no decision can then be made by it. Or calibrate the model again.",
    )
