"""The one place that names columns, and says what stands in them: of manifests, score tables, headers, verdicts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

SCORES_VERSION = 1

# The words of the column `status`.
SCORED = "scored"
FAILED = "failed"
SKIPPED = "skipped"
# The words of the column `verdict`, as in IHE's AI Results Assessment: the suspicion is right, the image is abnormal;
# nothing in it is abnormal; it is abnormal, and more of it or elsewhere than was marked.
ACCEPTED = "accepted"
REJECTED = "rejected"
SUPPLEMENTED = "supplemented"
# Takes an earlier verdict back; nothing is ever deleted.
WITHDRAWN = "withdrawn"


def is_flagged(score: Any, threshold: Any) -> Any:
    """Whether a score, or each of an array, is above the threshold, both in float32 as the table stores them."""
    return np.float32(score) > np.float32(threshold)


def storable(text: str) -> str:
    """The text with U+FFFD for every lone surrogate: what a header or a file name holds may be no Unicode text.

    >>> storable("a\\udcff")
    'a\ufffd'
    """
    return _SURROGATES.sub("\ufffd", text)


def storable_values(row: Mapping[str, object]) -> dict[str, object]:
    """The same of every text of a row."""
    return {name: storable(value) if isinstance(value, str) else value for name, value in row.items()}


# Code points that are no characters (Unicode 3.9, D75): neither UTF-8 nor Parquet can hold them.
_SURROGATES = re.compile("[\ud800-\udfff]")

# What a decoder may tell of an object's header. An allow-list: no name, id, birth date, accession number, free text.
HEADER = pa.schema(
    [
        ("study_uid", pa.string()),
        ("series_uid", pa.string()),
        ("sop_uid", pa.string()),
        ("modality", pa.string()),
        ("manufacturer", pa.string()),
        # YYYY-MM: the day would narrow a patient down.
        ("study_month", pa.string()),
        # As stored, before resize.
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        # Bits stored.
        ("bits", pa.int16()),
        # As stored, PS3.3 C.7.6.3.1.2; "RGB" or "MONOCHROME2" for ordinary pictures.
        ("photometric", pa.string()),
        # UID, or "png", "jpeg", "tiff".
        ("transfer_syntax", pa.string()),
    ]
)

# One row a frame and model. `frame` is 0 for single images and for objects that failed whole.
SCORES = pa.schema(
    [
        ("object_id", pa.int64()),
        ("uri", pa.string()),
        ("frame", pa.int32()),
        # scored | failed | skipped.
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("error_detail", pa.string()),
        ("score", pa.float32()),
        ("threshold", pa.float32()),
        # score > threshold.
        ("flagged", pa.bool_()),
        # heatmaps/part-….tar#offset,length, null if not kept.
        ("heatmap", pa.string()),
        ("model_id", pa.string()),
        ("run_id", pa.string()),
        ("content_sha256", pa.string()),
        ("bytes", pa.int64()),
        *HEADER,
        ("fetch_ms", pa.float32()),
        ("decode_ms", pa.float32()),
        # The frame's share of its batch.
        ("score_ms", pa.float32()),
        ("scored_at", pa.timestamp("us", tz="UTC")),
    ]
)

# What reviewers said of a run's frames, in RUN/reviews/; rows are only ever added.
VERDICTS = pa.schema(
    [
        # Unique.
        ("verdict_id", pa.string()),
        ("object_id", pa.int64()),
        ("frame", pa.int32()),
        ("content_sha256", pa.string()),
        # As the run shows it, hashed where that is.
        ("uri", pa.string()),
        ("reviewer", pa.string()),
        # accepted | rejected | supplemented | withdrawn.
        ("verdict", pa.string()),
        # Of a withdrawn one, the verdict_id of what it takes back; else null.
        ("withdraws", pa.string()),
        # By which decision the frame was looked at; null where by the run itself.
        ("decision_id", pa.string()),
        # By that decision, or by the run, at the time.
        ("flagged", pa.bool_()),
        ("noted_at", pa.timestamp("us", tz="UTC")),
    ]
)

MANIFEST = pa.schema(
    [
        # Dense, in URI order.
        ("object_id", pa.int64()),
        ("uri", pa.string()),
        ("bytes", pa.int64()),
        ("etag", pa.string()),
        ("modified", pa.timestamp("us", tz="UTC")),
    ]
)

# Added to the manifest by `index --headers`; null where the object is no DICOM file, or has no such value.
MANIFEST_HEADERS = pa.schema(
    [
        *MANIFEST,
        # The folder that holds the object, by its URI.
        ("group", pa.string()),
        # By its first bytes: dicom | png | jpeg | tiff | jp2 | other; null where they could not be fetched.
        ("kind", pa.string()),
        ("study_uid", pa.string()),
        ("series_uid", pa.string()),
        ("sop_uid", pa.string()),
        ("modality", pa.string()),
        ("body_part", pa.string()),
        ("view_position", pa.string()),
        # R, L, U (unpaired) or B (both).
        ("laterality", pa.string()),
        ("manufacturer", pa.string()),
        ("model", pa.string()),
        # Institution Name (0008,0080), by the identifiers' mode.
        ("site", pa.string()),
        # Its values with backslashes between them, as stored.
        ("image_type", pa.string()),
        ("acquisition_number", pa.int32()),
        ("instance_number", pa.int32()),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        ("frames", pa.int32()),
        ("bits", pa.int16()),
        ("photometric", pa.string()),
        # Between rows, between columns, in mm.
        ("pixel_spacing", pa.list_(pa.float64())),
        # In mm.
        ("slice_thickness", pa.float64()),
        # x, y, z of the first pixel's centre in mm, and the direction cosines of a row and of a column.
        ("image_position", pa.list_(pa.float64())),
        ("image_orientation", pa.list_(pa.float64())),
        ("transfer_syntax", pa.string()),
        ("compressed", pa.bool_()),
        ("lossy", pa.bool_()),
        ("study_month", pa.string()),
        # This and burned_in are warnings: text may be in the pixels (US, SC).
        ("sop_class", pa.string()),
        ("burned_in", pa.string()),
        # Why an object's header could not be read.
        ("header_error", pa.string()),
    ]
)
UIDS = ("study_uid", "series_uid", "sop_uid")
# Those that `index --identifiers` hashes, or leaves out: with other things an institution may tell who somebody is.
IDENTIFYING = (*UIDS, "site")
# Added by `index --demographics`.
DEMOGRAPHICS = pa.schema(
    [
        # Of five years: 00-04 to 85-89, and 90+.
        ("age_band", pa.string()),
        # M, F or O (other).
        ("sex", pa.string()),
    ]
)
# The columns of a manifest with headers by a version that did not write them down in its record.
FIRST_HEADERS = (
    *MANIFEST.names,
    *("modality", "body_part", "manufacturer", "model", "rows", "columns", "frames", "bits", "photometric"),
    *("transfer_syntax", "study_month", "sop_class", "burned_in", "header_error"),
)


def manifest_schema(columns: Sequence[str]) -> pa.Schema:
    """The schema of a manifest of these columns; those that this version does not know are left out."""
    known = pa.schema([*MANIFEST_HEADERS, *DEMOGRAPHICS])
    return pa.schema([known.field(name) for name in columns if name in known.names])
