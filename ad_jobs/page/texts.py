"""What the report says of metrics and error codes."""

from __future__ import annotations

from typing import NamedTuple

from ad_jobs.errors import ErrorCode


class Metric(NamedTuple):
    """A metric in words."""

    name: str
    what: str


# Those whose threshold was chosen on the labels they are judged by are for who asks for them: `evaluate --oracle`.
METRICS: dict[str, Metric] = {
    "image_auroc": Metric("Image AUROC", "how often an anomalous image scores above a normal one"),
    "image_ap": Metric("Image average precision", "precision averaged over recall"),
    "pixel_auroc": Metric("Pixel AUROC", "over all pixels of normal and anomalous images"),
    "aupro": Metric("AUPRO", "overlap per abnormal region, up to 30 % false positives"),
    "pixel_ap": Metric("Pixel average precision", "over all pixels of normal and anomalous images"),
    "pixel_auroc_paper_protocol": Metric(
        "Pixel AUROC, paper protocol", "anomalous images only, each heatmap stretched, soft masks"
    ),
}

ERRORS: dict[str, str] = {
    ErrorCode.NOT_FOUND: "listed in the manifest, gone when it was fetched",
    ErrorCode.ACCESS_DENIED: "the store refused the object",
    ErrorCode.FETCH_FAILED: "the store did not deliver it after all retries",
    ErrorCode.EMPTY: "zero bytes",
    ErrorCode.TOO_MANY_BYTES: "larger than the limit",
    ErrorCode.TOO_MANY_PIXELS: "announces more pixels than the limit",
    ErrorCode.TOO_MANY_FRAMES: "announces more frames than the limit",
    ErrorCode.TOO_MUCH_MEMORY: "takes more memory to decode than the limit",
    ErrorCode.UNKNOWN_FORMAT: "neither DICOM, PNG, JPEG nor TIFF by content",
    ErrorCode.TRUNCATED: "ends before its pixels do",
    ErrorCode.CORRUPT: "the decoder rejects it",
    ErrorCode.UNSUPPORTED_SYNTAX: "a DICOM transfer syntax without a decoder",
    ErrorCode.UNSUPPORTED_IMAGE: "decodes to something no detector takes",
    ErrorCode.NON_FINITE_PIXELS: "not-a-number or infinite values after rescale",
    ErrorCode.DECODE_TIMEOUT: "took longer to decode than the limit",
    ErrorCode.DECODER_CRASHED: "the decoder's process died on it",
    ErrorCode.NON_FINITE_SCORE: "the detector's score was not a finite number",
    ErrorCode.UNREADABLE_CONTAINER: "a ZIP or TAR that is damaged or over a limit",
    ErrorCode.NESTED_CONTAINER: "a container within a container",
    ErrorCode.UNSUPPORTED_MEMBER: "encrypted, sparse, or of an unknown compression in its container",
    ErrorCode.NOT_AN_IMAGE: "a DICOM object without an image, left out on purpose",
    ErrorCode.OUT_OF_DOMAIN: "of a kind that the model's fit saw none of, left out on purpose (scan --accept)",
}
