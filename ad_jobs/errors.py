"""The errors a user meets, and the codes of bad images.

    RetroscanError
    ├── UsageError       exit 2: refused before any work
    ├── JobError         exit 1: a verb could not do what it was asked
    └── TooManyFailed    exit 3: ended, as more images failed than --max-failed allows
    ImageError           one bad object: becomes a row of the table, never ends a run

Every class hands all of its arguments to ``Exception.__init__`` and formats in ``__str__``, so that it survives
pickling on its way back from a Ray worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class RetroscanError(Exception):
    """Base of what a verb raises on purpose; ``exit_code`` is what the command line ends with."""

    exit_code = 1


class UsageError(RetroscanError):
    """A request that cannot be carried out as written: the rule it breaks, the value given, and the remedy.

    >>> print(UsageError("A seed is 0 or more.", -1, "Give another."))
    A seed is 0 or more. Got: -1. Give another.
    """

    exit_code = 2

    def __init__(self, rule: str, value: object, remedy: str) -> None:
        super().__init__(rule, value, remedy)
        self.rule = rule
        self.value = value
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.rule} Got: {self.value}. {self.remedy}"


def refused(error: ValidationError, options: set[str]) -> UsageError:
    """What pydantic refuses, as rule, value and remedy; `options` by their names on the command line."""
    first = error.errors(include_url=False)[0]
    name, *inside = (str(part) for part in first["loc"]) if first["loc"] else ("",)
    option = f"--{name.replace('_', '-')}" if name in options else name
    told = first["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    if first["type"] == "missing":
        return UsageError(f"{option} is needed.", "nothing", "Name one.")
    if first["type"] == "extra_forbidden" and not inside:
        return UsageError("Options are those of the verb.", name, f"This one's are: {', '.join(sorted(options))}.")
    where = " ".join([option, *inside]).strip()
    if first["type"] == "extra_forbidden":
        return UsageError(f"{where} is not known.", repr(first["input"]), "Check the spelling.")
    if first["type"] == "dict_type":
        return UsageError(
            f"{where} takes values by their names.", repr(first["input"]), "Write NAME=VALUE or {NAME: VALUE}."
        )
    if first["type"] == "too_short":
        return UsageError(f"{option} takes one or more.", "none", "Name one.")
    return UsageError(f"{where or 'A value'} {told}.", repr(first["input"]), "Give another.")


def flaw(error: ValidationError) -> str:
    """The first thing that pydantic found wrong in a file: where it stands, the rule, and what stands there.

    As in `limits.max_frame: no such field, with 3` and `data: must be a valid dictionary, with None`.
    """
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    told = _FLAWS.get(first["type"]) or first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    # Of the others the input is what it should stand in, or the whole text.
    shown = (
        f", with {_short(first['input'])}" if first["type"] not in ("missing", "json_invalid", "value_error") else ""
    )
    return f"{where}: {told}{shown}" if where else f"{told}{shown}"


_FLAWS = {"extra_forbidden": "no such field", "missing": "missing"}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


class JobError(RetroscanError):
    """A verb that started and could not finish: what went wrong, and what to do about it."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}".strip()


class TooManyFailed(RetroscanError):
    """More objects failed than ``--max-failed`` allows: the run ended there, unfinished; what is done is kept."""

    exit_code = 3

    def __init__(self, failed: int, objects: int, allowed: float) -> None:
        super().__init__(failed, objects, allowed)
        self.failed = failed
        self.objects = objects
        self.allowed = allowed

    def __str__(self) -> str:
        return (
            f"{self.failed} of {self.objects} failed ({self.failed / self.objects:.2%} of the objects), more than "
            f"--max-failed {self.allowed:g} allows. What is done is kept; column error_code says why they failed "
            "(of an unfinished run: read_scores(RUN, allow_unfinished=True)). A larger --max-failed goes on from there."
        )


class ErrorCode(StrEnum):
    """Why an object has no score. The codes are part of the table's contract: never renamed, only added to."""

    # Listed in the manifest, gone now.
    NOT_FOUND = "not_found"
    # The store refused this object.
    ACCESS_DENIED = "access_denied"
    # The store did not deliver it after all retries.
    FETCH_FAILED = "fetch_failed"
    # Zero bytes.
    EMPTY = "empty"
    # Over the limit before decode.
    TOO_MANY_BYTES = "too_many_bytes"
    # Its header announces more pixels than the limit, or its one frame has more at the input's size.
    TOO_MANY_PIXELS = "too_many_pixels"
    # Its header announces more frames than the limit, or more than fit at the input's size.
    TOO_MANY_FRAMES = "too_many_frames"
    # Its decoding takes more memory than the limit.
    TOO_MUCH_MEMORY = "too_much_memory"
    # Neither DICOM, PNG, JPEG nor TIFF by content.
    UNKNOWN_FORMAT = "unknown_format"
    # Ends before its pixels do.
    TRUNCATED = "truncated"
    # The decoder rejects it.
    CORRUPT = "corrupt"
    # A DICOM transfer syntax without a decoder here.
    UNSUPPORTED_SYNTAX = "unsupported_syntax"
    # Decodes, but to something no detector can take.
    UNSUPPORTED_IMAGE = "unsupported_image"
    # NaN or infinity after rescale.
    NON_FINITE_PIXELS = "non_finite_pixels"
    # Took longer than the limit.
    DECODE_TIMEOUT = "decode_timeout"
    # The decoder's process died on it.
    DECODER_CRASHED = "decoder_crashed"
    # The detector returned NaN or infinity.
    NON_FINITE_SCORE = "non_finite_score"
    # A ZIP, TAR or gzip file that is damaged or over a limit: its members are not known.
    UNREADABLE_CONTAINER = "unreadable_container"
    # A member of a ZIP or TAR that is itself one.
    NESTED_CONTAINER = "nested_container"
    # A member that is encrypted, sparse, or compressed by a method that is not read here.
    UNSUPPORTED_MEMBER = "unsupported_member"
    # A DICOM object without an image (SR, PR, KO, SEG...): skipped, not failed.
    NOT_AN_IMAGE = "not_an_image"
    # An image of a kind that the model's fit saw none of (domain.json): skipped, unless scan --accept names it.
    OUT_OF_DOMAIN = "out_of_domain"


SKIP_CODES = frozenset({ErrorCode.NOT_AN_IMAGE, ErrorCode.OUT_OF_DOMAIN})


class ImageError(Exception):
    """One object that cannot be scored: its code, and a detail free of header text (no names, no ids).

    `header` has what could be read of its header all the same, by the names of schema.HEADER.
    """

    def __init__(self, code: ErrorCode, detail: str, header: Mapping[str, object] | None = None) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        # No argument of the exception, which what is logged of it may show; it is pickled with it all the same.
        self.header = dict(header or {})

    def knowing(self, header: Mapping[str, object]) -> ImageError:
        """The same of an object with this header, where none is known yet."""
        return ImageError(self.code, self.detail, self.header or header)

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"
