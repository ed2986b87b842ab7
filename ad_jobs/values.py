"""What is written in a request, read as what it means: places, sizes in pixels, grey windows."""

from __future__ import annotations

from math import isfinite
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ad_jobs.errors import UsageError
from ad_jobs.images.policy import MAX_SIDE_PX, PixelPolicy, Window, has_width

# Before the place of a manifest: its rows are read, whatever else lies there.
MANIFEST = "manifest:"
# In place of a labels file: what reviewers said of the run.
REVIEWS = "reviews"


def place(value: str | PathLike[str]) -> str:
    """The one absolute spelling of a local path or an s3:// URI.

    >>> place("s3://bucket/run/"), place("run")
    ('s3://bucket/run', '/.../run')

    Raises:
        UsageError: it is empty, or of a scheme other than s3 and file.
    """
    # Imported here: boto3 stands behind it, and --help does without.
    from cluster.storage import uris

    text = fspath(value) if isinstance(value, str | PathLike) else ""
    if not text or uris.is_foreign(text) or text.rstrip("/") == "s3:":
        raise UsageError(
            "A place is a local path or an s3://bucket/prefix.",
            repr(value),
            "Copy what lies there to one of these, or mount it as a folder.",
        )
    return uris.absolute(text)


def labels_place(value: str | PathLike[str]) -> str:
    """Where labels lie: a place, or `reviews`, the verdicts in the run itself.

    >>> labels_place("reviews"), labels_place("./reviews")
    ('reviews', '/.../reviews')
    """
    return REVIEWS if value == REVIEWS else place(value)


def run_place(value: str | PathLike[str]) -> str:
    """The one spelling of a run's folder, which Parquet's libraries take in Unicode alone.

    Raises:
        UsageError: as `place`; or its name, or a folder's above it, is no Unicode text.
    """
    found = place(value)
    if found.startswith("file://"):
        raise UsageError("The folder of a run is named in Unicode.", found, "Name another.")
    return found


def source_place(value: str | PathLike[str]) -> str:
    """The one spelling of a SOURCE: a place, or `manifest:` and a place.

    >>> source_place("manifest:m"), source_place("s3://bucket/2024")
    ('manifest:/.../m', 's3://bucket/2024')

    Raises:
        UsageError: as `place`.
    """
    if isinstance(value, str) and value.startswith(MANIFEST):
        return MANIFEST + place(value.removeprefix(MANIFEST))
    return place(value)


def read_key(option: str, file: Path) -> bytes:
    """The secret in a file, without white space around it; `option` is what named the file.

    Raises:
        UsageError: it cannot be read, or is empty.
    """
    try:
        found = file.read_bytes().strip()
    except OSError as error:
        raise UsageError(
            f"{option} must name a readable file.", f"{file} ({error.strerror})", "Check the path."
        ) from error
    if not found:
        raise UsageError(f"{option} must name a file with a key.", f"{file}, empty", "Write a secret into it.")
    return found


def parse_size(value: Any, option: str = "--size") -> tuple[int, int]:
    """(height, width) in pixels of 256, `256`, `256x128` (height x width) or such a pair, given as `option`.

    >>> parse_size("256x128"), parse_size(64)
    ((256, 128), (64, 64))

    Raises:
        UsageError: anything else.
    """
    parts = [str(part) for part in value] if isinstance(value, list | tuple) else str(value).lower().split("x")
    whole = all(part.isascii() and part.isdecimal() for part in parts) and len(parts) in (1, 2)
    if not whole or not all(0 < int(part) <= MAX_SIDE_PX for part in parts):
        raise UsageError(
            f"{option} is one number of pixels, or heightxwidth, each from 1 to {MAX_SIDE_PX}.",
            repr(value),
            f"Write for example {option} 128 or {option} 256x128.",
        )
    return int(parts[0]), int(parts[-1])


def several(value: Any) -> Any:
    """One name as a list of one, paths as texts."""
    names = (value,) if isinstance(value, str | PathLike) else value
    if not isinstance(names, list | tuple):
        return names
    return [fspath(one) if isinstance(one, PathLike) else one for one in names]


def columns(value: Any) -> Any:
    """Names of columns, each once, of `a,b` or a list of such.

    >>> columns("manufacturer,modality"), columns(["modality"])
    (['manufacturer', 'modality'], ['modality'])
    """
    names = several(value)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return names
    given = [one.strip() for name in names for one in name.split(",")]
    return list(dict.fromkeys(name for name in given if name))


def size_text(size_px: tuple[int, int] | None) -> str | None:
    """Height and width as `parse_size` reads them."""
    if size_px is None:
        return None
    height, width = size_px
    return str(height) if height == width else f"{height}x{width}"


def tiles_text(policy: PixelPolicy) -> str | None:
    """How images are cut into tiles, in words; None where they are not."""
    if policy.tiles is None:
        return None
    of = "at their own resolution" if policy.tiles.size_px is None else f"of {size_text(policy.tiles.size_px)} px"
    return f"of {size_text(policy.size_px)} px, overlapping by {policy.tiles.overlap_px}, cut from images {of}"


# In seconds.
_UNITS = {"s": 1, "m": 60, "h": 3600}


def parse_time(value: Any) -> float:
    """Seconds of `90s`, `10m`, `1.5h`, or of a number of seconds.

    >>> parse_time("10m"), parse_time(90)
    (600.0, 90.0)

    Raises:
        UsageError: anything else, or no time at all.
    """
    text = str(value).strip().lower()
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = 0.0
    if not (isfinite(seconds) and seconds > 0):
        raise UsageError(
            "A time is a number above 0 with s, m or h.", repr(value), "Write for example 90s, 10m or 1.5h."
        )
    return seconds


def time_text(seconds: float | None) -> str | None:
    """Seconds as `parse_time` reads them.

    >>> time_text(600.0), time_text(90.5)
    ('10m', '90.5s')
    """
    if seconds is None:
        return None
    return f"{seconds / 60:g}m" if seconds % 60 == 0 else f"{seconds!r}s"


def parse_window(value: Any) -> Window:
    """`dicom`, `percentile`, or (low, high) of `low,high` or such a pair, in modality units.

    >>> parse_window("-100,300"), parse_window("dicom")
    ((-100.0, 300.0), 'dicom')

    Raises:
        UsageError: anything else.
    """
    if value in ("dicom", "percentile"):
        return value
    parts = value.strip("[]").split(",") if isinstance(value, str) else value
    try:
        low, high = (float(part) for part in parts)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(
            "--window is dicom, percentile or low,high.", repr(value), "Write for example --window=-100,300."
        ) from error
    if not has_width(low, high):
        raise UsageError(
            "A fixed --window is two finite numbers, low < high.", repr(value), "Write for example --window=-100,300."
        )
    return low, high
