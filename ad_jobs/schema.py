"""The one place that names columns, and says what stands in them: of manifests, of score tables, of DICOM headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

SCORES_VERSION = 1

# The words of the column `status`.
SCORED = "scored"
FAILED = "failed"
SKIPPED = "skipped"


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
        # Why an object's header could not be read.
        ("header_error", pa.string()),
    ]
)
