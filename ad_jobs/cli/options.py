"""What a job is asked to do: `--config` files, values of flags, and the specification of a fit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from ad_jobs.errors import UsageError
from ad_jobs.images.policy import Limits


class FitSpec(BaseModel):
    """Everything a fit is asked to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    detector: str
    normal: str
    out: str
    anomalous: str | None = None
    size_px: tuple[int, int] = (128, 128)  # height, width
    options: dict[str, Any] = Field(default_factory=dict)  # of the detector: epochs, backbone, ...
    policy: dict[str, Any] = Field(default_factory=dict)  # window, resize, interpolation
    limits: Limits = Field(default_factory=Limits)
    seed: int = Field(default=0, ge=0)
    workers: int = Field(default=1, ge=1)
    # Of decoded images in memory; None: half of the object store. What is beyond is decoded again in every epoch.
    keep_mib: int | None = Field(default=None, ge=0)
    address: str | None = None


def read_config(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """The options in a YAML mapping, by option name with - or _ between words.

    Raises:
        UsageError: no such file, no mapping, or an option the verb does not have.
    """
    known = sorted(known)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            "--config must name a readable file.", f"{path} ({error.strerror})", "Check the path."
        ) from error
    except yaml.YAMLError as error:
        raise UsageError(
            "--config must be YAML.", f"{path}: {str(error).splitlines()[0]}", "Write one `option: value` a line."
        ) from error
    if not isinstance(content, dict):
        raise UsageError(
            "--config must be a mapping of options.",
            f"{path}: {type(content).__name__}",
            "Write one `option: value` a line.",
        )
    options = {str(key).replace("-", "_"): value for key, value in content.items()}
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(
            "--config holds options of the verb.", f"{unknown[0]!r} in {path}", f"This verb's are: {', '.join(known)}."
        )
    return options


def read_key(path: Path | None) -> bytes | None:
    """The key in a file, without white space around it; raises UsageError if it cannot be read."""
    if path is None:
        return None
    try:
        return path.read_bytes().strip()
    except OSError as error:
        raise UsageError(
            "--identifiers-key must name a readable file.", f"{path} ({error.strerror})", "Check the path."
        ) from error


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """`--set key=value` pairs as a mapping; each value is read as YAML (numbers, true, [2, 3])."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError("--set takes key=value.", repr(pair), "Write for example --set backbone=vgg16.")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(
                "The value of --set must be plain YAML.",
                repr(pair),
                "Quote it in the shell, as in --set 'layers=[2,3]'.",
            ) from error
    return settings


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels of `256` or `256x128` (height x width).

    Raises:
        UsageError: anything else.
    """
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(
            "--size is one number of pixels, or heightxwidth.",
            repr(text),
            "Write for example --size 128 or --size 256x128.",
        )
    return int(parts[0]), int(parts[-1])


def parse_window(text: str) -> str | tuple[float, float]:
    """`dicom`, `percentile`, or (low, high) of `low,high` in modality units.

    Raises:
        UsageError: anything else.
    """
    if text in ("dicom", "percentile"):
        return text
    try:
        low, high = (float(part) for part in text.strip("[]").split(","))
    except ValueError as error:
        raise UsageError(
            "--window is dicom, percentile or low,high.", repr(text), "Write for example --window=-100,300."
        ) from error
    if not low < high:
        raise UsageError("A fixed --window needs low < high.", repr(text), "Swap the two.")
    return low, high
