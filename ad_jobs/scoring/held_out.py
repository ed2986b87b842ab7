"""The scores that a calibration came from: with them another rule can be had, and no image is scored again.

They name no image: an object is the digest of its bytes, a group and a series are numbers.
The institution that an image is from is kept where that was asked for, by its name or by its hash under a key: one
without a key could be undone by whoever has a list of hospitals.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ad_jobs.archive.identifiers import Identifiers, Naming
from ad_jobs.errors import UsageError
from ad_jobs.schema import MANIFEST_HEADERS
from cluster import storage

# Of the object's header, by which held-out images may be told apart (`decide --by`).
HEADER = pa.schema(
    [
        MANIFEST_HEADERS.field(name)
        for name in (
            *("modality", "body_part", "manufacturer", "model", "study_month"),
            *("rows", "columns", "bits", "photometric", "transfer_syntax", "site"),
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
        # `site` only where it was asked for.
        *HEADER,
    ]
)
# Of a calibration that keeps no site; and where a file says how its sites are named.
UNNAMED = Naming("none", None)
_NAMING = b"retroscan.identifiers"
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

    def named_by(self, identifiers: Identifiers) -> Origin:
        """The same, its institution named so."""
        return self._replace(header={**self.header, "site": identifiers.uid(self.header.get("site"))})


class Scored(NamedTuple):
    """What is kept of a held-out frame."""

    object: str
    frame: int
    group: str
    anomalous: bool
    score: float
    series: str = ""
    header: Mapping[str, Any] = _NOTHING


def to_parquet(scored: Iterable[Scored], naming: Naming = UNNAMED) -> bytes:
    """A file of HELD_OUT, in the order given; with a column `site` if `naming` says how sites are named there."""
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
    schema = HELD_OUT.with_metadata({_NAMING: json.dumps(naming._asdict())})
    if naming.mode == "none":
        schema = pa.schema([field for field in HELD_OUT if field.name != "site"])
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), file, compression="zstd")
    return file.getvalue()


def naming_of(schema: pa.Schema) -> Naming:
    """How the sites of a file with this schema are named; UNNAMED where it has none."""
    said = (schema.metadata or {}).get(_NAMING)
    return UNNAMED if said is None else Naming(**json.loads(said))


def check_hidden(body: bytes | None, identifiers: Identifiers, model: str) -> None:
    """Raise UsageError where a run that hides identifiers would keep a copy of a file of HELD_OUT that names sites."""
    if body is None or identifiers.mode == "plain" or naming_of(pq.read_schema(io.BytesIO(body))).mode != "plain":
        return
    raise UsageError(
        "A run that hides identifiers names no institution.",
        f"--identifiers {identifiers.mode}, and the calibration of {model}, made with --identifiers plain",
        "Calibrate the model again with --identifiers hashed and a key, or without --identifiers.",
    )


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
    return table.select(there.names).cast(there.with_metadata(table.schema.metadata))


def _changed(uri: str, what: str) -> UsageError:
    return UsageError(
        "The scores that a calibration came from stay beside it, unchanged.",
        f"{uri}: {what}",
        "Restore it: a model is copied with its folder calibrations/. Of a calibration.json that was edited, take out "
        "held_out_sha256: no decision can then be made by it. Or calibrate the model again.",
    )
