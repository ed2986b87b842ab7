"""The one place that names columns, and says what stands in them: the manifest, the score table, what comes from DICOM."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

SCORES_VERSION = 1

# The words of the column `status`.
SCORED = "scored"
FAILED = "failed"
SKIPPED = "skipped"


def is_flagged(score: Any, threshold: Any) -> Any:
    """Whether a score, or each of an array of them, is above the threshold, both as the table stores them: in float32."""
    return np.float32(score) > np.float32(threshold)


# What a decoder may tell of an object's header. An allow-list: no name, id, birth date, accession number, free text.
HEADER = pa.schema(
    [
        ("study_uid", pa.string()),
        ("series_uid", pa.string()),
        ("sop_uid", pa.string()),
        ("modality", pa.string()),
        ("manufacturer", pa.string()),
        ("study_month", pa.string()),  # YYYY-MM: the day would narrow a patient down
        ("rows", pa.int32()),  # as stored, before resize
        ("columns", pa.int32()),
        ("bits", pa.int16()),  # bits stored
        ("photometric", pa.string()),  # as stored, PS3.3 C.7.6.3.1.2; "RGB" or "MONOCHROME2" for ordinary pictures
        ("transfer_syntax", pa.string()),  # UID, or "png", "jpeg", "tiff"
    ]
)

# One row a frame and model. `frame` is 0 for single images and for objects that failed whole.
SCORES = pa.schema(
    [
        ("object_id", pa.int64()),
        ("uri", pa.string()),
        ("frame", pa.int32()),
        ("status", pa.string()),  # scored | failed | skipped
        ("error_code", pa.string()),
        ("error_detail", pa.string()),
        ("score", pa.float32()),
        ("threshold", pa.float32()),
        ("flagged", pa.bool_()),  # score > threshold
        ("heatmap", pa.string()),  # heatmaps/part-….tar#offset,length, null if not kept
        ("model_id", pa.string()),
        ("run_id", pa.string()),
        ("content_sha256", pa.string()),
        ("bytes", pa.int64()),
        *HEADER,
        ("fetch_ms", pa.float32()),
        ("decode_ms", pa.float32()),
        ("score_ms", pa.float32()),  # the frame's share of its batch
        ("scored_at", pa.timestamp("us", tz="UTC")),
    ]
)

MANIFEST = pa.schema(
    [
        ("object_id", pa.int64()),  # dense, in URI order
        ("uri", pa.string()),
        ("bytes", pa.int64()),
        ("etag", pa.string()),
        ("modified", pa.timestamp("us", tz="UTC")),
    ]
)

# Added to the manifest by `index --headers`. burned_in and sop_class are warnings: text may be in the pixels (US, SC).
MANIFEST_HEADERS = pa.schema(
    [
        *MANIFEST,
        ("modality", pa.string()),
        ("body_part", pa.string()),
        ("manufacturer", pa.string()),
        ("model", pa.string()),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        ("frames", pa.int32()),
        ("bits", pa.int16()),
        ("photometric", pa.string()),
        ("transfer_syntax", pa.string()),
        ("study_month", pa.string()),
        ("sop_class", pa.string()),
        ("burned_in", pa.string()),
        ("header_error", pa.string()),  # why an object's header could not be read
    ]
)
