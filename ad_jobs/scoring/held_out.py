"""The scores that a calibration came from: with them another rule can be had, and no image is scored again.

They name no image: an object is the digest of its bytes, a group a number.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ad_jobs.errors import UsageError
from cluster import storage

HELD_OUT = pa.schema(
    [
        # SHA-256 over its bytes, hexadecimal; the table of a run has it as content_sha256.
        ("object", pa.string()),
        ("frame", pa.int32()),
        # Frames with one number were held out together: of a study, a patient, a part.
        ("group", pa.int32()),
        ("anomalous", pa.bool_()),
        ("score", pa.float32()),
    ]
)


class HeldOut(NamedTuple):
    """A held-out frame, uint16 [c, H, W], with the digest of its object's bytes and what it was held out with."""

    pixels: NDArray[np.uint16]
    object: str = ""
    frame: int = 0
    # By itself where there is none.
    group: str = ""


class Scored(NamedTuple):
    """What is kept of a held-out frame."""

    object: str
    frame: int
    group: str
    anomalous: bool
    score: float


def to_parquet(scored: Iterable[Scored]) -> bytes:
    """A file of HELD_OUT, in the order given."""
    numbers: dict[str, int] = {}
    rows = []
    for place, one in enumerate(scored):
        number = numbers.setdefault(one.group or f"alone {place}", len(numbers))
        rows.append({**one._asdict(), "group": number})
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, HELD_OUT), file, compression="zstd")
    return file.getvalue()


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
    """The held-out scores in a file, HELD_OUT.

    Raises:
        UsageError: as `held_out_file`.
    """
    return pq.read_table(io.BytesIO(held_out_file(uri, sha256)), schema=HELD_OUT)


def _changed(uri: str, what: str) -> UsageError:
    return UsageError(
        "The scores that a calibration came from stay beside it, unchanged.",
        f"{uri}: {what}",
        "Restore it: a model is copied with its folder calibrations/. Of a calibration.json that was edited, take out "
        "held_out_sha256: no decision can then be made by it. Or calibrate the model again.",
    )
