"""What a scan will make of an object, as far as its header tells: by the rules that the scan itself goes by.

A header says neither whether the pixels are whole nor whether they are in colour: what is only seen there is not
foretold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images import dicom
from ad_jobs.images.domain import Taker, Traits
from ad_jobs.images.picture import check_frames, check_input, check_size
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.images.sop_class import is_no_image

_PICTURES = ("png", "jpeg", "tiff")


class Outlook(NamedTuple):
    """What is to be expected of an object.

    `code` and `detail` say why no model will score it, None where nothing speaks against it.
    `refused` says of each model why it does not take it, None where it does; empty where the code is every model's.
    """

    code: ErrorCode | None
    detail: str
    refused: tuple[str | None, ...]

    @property
    def outcome(self) -> ErrorCode | None:
        """The code that a scan counts the object under: one that any model refuses is skipped; None if it is scored."""
        return ErrorCode.OUT_OF_DOMAIN if self.code is None and any(self.refused) else self.code

    @property
    def is_scored(self) -> bool:
        """Whether any model will score it."""
        return self.code is None and None in self.refused


def outlook(
    header: Mapping[str, Any], policies: Sequence[PixelPolicy], limits: Limits, takers: Sequence[Taker]
) -> Outlook:
    """What a scan will make of an object.

    Args:
        header: columns of schema.MANIFEST_HEADERS, and `spacing_mm` in place of `pixel_spacing`; null where it is not
            told.
        policies: the different ones among the models.
        limits: what one object may cost.
        takers: the models: what each takes, and the number of its policy.
    """
    refused: tuple[str | None, ...] = ()
    try:
        _check(header, limits)
        refused = tuple(taker.domain.refusal(_traits(header)) for taker in takers)
        wanted = {taker.policy for taker, reason in zip(takers, refused, strict=True) if reason is None}
        if wanted:
            size = header["rows"], header["columns"]
            check_input(header["frames"] or 1, size, [policies[number] for number in sorted(wanted)], limits)
    except ImageError as error:
        return Outlook(error.code, error.detail, refused)
    return Outlook(None, "", refused)


def _check(header: Mapping[str, Any], limits: Limits) -> None:
    kind, size = header["kind"], header["bytes"]
    if kind is None:
        raise ImageError(ErrorCode(header["header_error"]), "its first bytes did not come")
    if size == 0:
        raise ImageError(ErrorCode.EMPTY, "zero bytes")
    if size is not None and size > limits.max_bytes:
        raise ImageError(ErrorCode.TOO_MANY_BYTES, f"over max_bytes {limits.max_bytes}")
    if kind not in ("dicom", *_PICTURES):
        raise ImageError(ErrorCode.UNKNOWN_FORMAT, f"{kind} by its first bytes")
    if kind == "dicom":
        _check_dicom(header, limits)


def _check_dicom(header: Mapping[str, Any], limits: Limits) -> None:
    if header["header_error"] is not None:
        raise ImageError(ErrorCode(header["header_error"]), "its header cannot be read")
    sop_class, syntax = header["sop_class"] or "", header["transfer_syntax"]
    if is_no_image(sop_class, header["modality"] or ""):
        raise ImageError(ErrorCode.NOT_AN_IMAGE, f"SOP class {sop_class or 'not told'}")
    if syntax is not None and not dicom.decodable(syntax):
        raise ImageError(ErrorCode.UNSUPPORTED_SYNTAX, f"no decoder for transfer syntax {syntax}")
    if header["rows"] is not None and header["columns"] is not None:
        check_size(header["rows"], header["columns"], limits)
    check_frames(header["frames"] or 1, limits)


def _traits(header: Mapping[str, Any]) -> Traits:
    kind = "picture" if header["kind"] in _PICTURES else header["kind"]
    # Of a picture a manifest has its kind alone.
    syntax = header["kind"] if kind == "picture" else header["transfer_syntax"] or "unknown"
    return Traits.of({**header, "transfer_syntax": syntax})
