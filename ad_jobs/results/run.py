"""The run manifest `run.json`: what was scanned with what, the counts, and the parts with their digests.

It is written last, so a run without it is unfinished. Counts and parts come from the files as they lie in
storage, never from what a job believed it wrote.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, overload

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ad_jobs.errors import UsageError, flaw
from ad_jobs.results.count import Counts, TableCounts, assert_balanced, count_table
from ad_jobs.results.parts import (
    SCORES_FOLDER,
    HeatmapPart,
    ScorePart,
    describe_heatmap_part,
    describe_parts,
    part_uris,
)
from ad_jobs.results.seal import sealed
from ad_jobs.specs import CHAPTER_OBJECTS, Retry
from cluster import storage
from models.record import networks

__all__ = [
    "Counts",
    "HeatmapPart",
    "ManifestRef",
    "ModelRef",
    "ParentRef",
    "RunRecord",
    "ScorePart",
    "TableCounts",
    "assert_balanced",
    "count_table",
    "describe_heatmap_part",
    "describe_parts",
    "machine",
    "part_uris",
    "read_record",
    "versions",
    "write_record",
]

RUN_FILE = "run.json"
# Of the calibrations that the models had when the run was made.
CALIBRATIONS_FOLDER = "calibrations"

# Whose versions decide what a score is; everything else follows from pip's resolution of these.
PACKAGES = (
    "retroscan",
    "torch",
    "torchvision",
    "onnx",
    "onnxruntime",
    "timm",
    "ray",
    "pyarrow",
    "numpy",
    "scipy",
    "pandas",
    "pillow",
    "pydicom",
    "imagecodecs",
    "simplejpeg",
    "tifffile",
    "python-gdcm",
    "safetensors",
    "boto3",
    "pydantic",
)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ManifestRef(_Record):
    """What was scanned: the manifest, its digest, and how many of its objects were selected."""

    uri: str
    digest: str
    # Selected by `where`, all without it; not those that the run's parent has.
    objects: int = Field(ge=0)
    where: str | None = None
    # All objects of the manifest, and those for which `where` is NULL; not in runs of earlier versions.
    listed: int | None = Field(default=None, ge=0)
    undecided: int | None = Field(default=None, ge=0)
    # Left out because the run's parent, or one of its own, has them.
    already: int = Field(default=0, ge=0)
    # Over what it lists and how; not in runs of version 1.
    fingerprint: str | None = None

    @property
    def not_selected(self) -> int | None:
        """For how many objects `where` is false; None where the record does not say."""
        if self.listed is None or self.undecided is None:
            return None
        return not_selected(self.listed, self.objects, self.already, self.undecided)


def not_selected(listed: int, objects: int, already: int, undecided: int) -> int:
    """For how many of the listed objects a condition is false: each is one of these."""
    return listed - objects - already - undecided


class ModelRef(_Record):
    """One model of the run, with everything that decides a score, a flag or a heatmap's scale."""

    model_id: str
    uri: str
    kind: str
    threshold: float
    calibration_sha256: str
    weights_sha256: str
    policy: dict[str, Any]
    heatmap_low: float
    heatmap_high: float
    # The raw value that is drawn half hot; not in runs of earlier versions.
    heatmap_anchor: float | None = None
    # Of the whole of detector.json, what does not decide a score included; not in runs of version 1.
    detector_sha256: str | None = None
    # Of the copy that the run keeps of the calibration, which with hashed identifiers is not the model's own.
    kept_calibration_sha256: str | None = None
    # As the model keeps it, below calibrations/; not in runs of earlier versions.
    calibration_id: str | None = None
    # Of the copy that the run keeps of the scores the calibration came from; not of calibrations that kept none.
    held_out_sha256: str | None = None
    # The pretrained network inside: its name, where its weights are from, their sha256 and licence ("" where nobody
    # says); null of a detector without one, and in runs of earlier versions. Of a fused model its `members`: each with
    # its kind, model_id, weight, and its own source.
    source: dict[str, Any] | None = None
    # How `fit --detector auto` chose it: candidates, what each found, why; null of another, and in earlier runs.
    auto: dict[str, Any] | None = None

    @property
    def members(self) -> list[dict[str, Any]]:
        """Of a fused model its members; none of others."""
        return (self.source or {}).get("members", [])

    @property
    def networks(self) -> list[dict[str, Any]]:
        """The pretrained networks inside, each once."""
        return networks(self.source)


class ParentRef(_Record):
    """The run that this one was made since: objects that it has, or its own parents, were left out."""

    uri: str
    run_id: str
    # Of its run.json.
    sha256: str
    # What of an object must be the same for it to be had.
    same: tuple[str, ...] = ("uri", "etag", "bytes")
    # What is scored again although it is had.
    retry: Retry | None = None
    # So many of the run's objects are there for that reason.
    retried: int = Field(ge=0)
    # And so many because they were skipped there as out of a model's domain, and this run accepts more.
    widened: int = Field(default=0, ge=0)


class RunRecord(_Record):
    """The content of run.json. Version 1 had no digest."""

    version: Literal[1, 2] = 2
    run_id: str
    status: Literal["finished"] = "finished"
    started_at: datetime
    ended_at: datetime
    source: str
    manifest: ManifestRef
    parent: ParentRef | None = None
    models: list[ModelRef] = Field(min_length=1)
    config: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    # What ran the detectors, with its version: several where these or the machines differ; none in earlier versions.
    engines: list[str] = []
    # So many objects were scored and committed at a time; it is in the names of the parts.
    chapter_objects: int = Field(default=CHAPTER_OBJECTS, ge=1)
    counts: Counts
    parts: list[ScorePart]
    heatmap_parts: list[HeatmapPart]
    # See `results.seal`.
    digest: str | None = None
    signature: str | None = None


def write_record(run_uri: str, record: RunRecord, key: bytes | None = None) -> RunRecord:
    """Close the run: write run.json, after every other file of it is in place; it is returned with its digest.

    With `key` it is signed, too.
    """
    content = sealed(record.model_dump(mode="json"), key)
    storage.write_bytes(storage.join(run_uri, RUN_FILE), (json.dumps(content, indent=2) + "\n").encode())
    return RunRecord.model_validate(content)


def write_calibration_copy(run_uri: str, model_id: str, body: bytes, held_out: bytes | None) -> None:
    """Keep the calibration that a model's rows are judged by, and its scores: the model may be given another."""
    storage.write_bytes(calibration_copy(run_uri, model_id), body)
    if held_out is not None:
        storage.write_bytes(held_out_copy(run_uri, model_id), held_out)


def calibration_copy(run_uri: str, model_id: str) -> str:
    """Where that copy of the calibration lies."""
    return storage.join(run_uri, CALIBRATIONS_FOLDER, f"{model_id}.json")


def held_out_copy(run_uri: str, model_id: str) -> str:
    """Where that copy of its scores lies."""
    return storage.join(run_uri, CALIBRATIONS_FOLDER, f"{model_id}.parquet")


@overload
def read_record(run_uri: str, allow_unfinished: Literal[False] = False) -> RunRecord: ...
@overload
def read_record(run_uri: str, allow_unfinished: bool) -> RunRecord | None: ...
def read_record(run_uri: str, allow_unfinished: bool = False) -> RunRecord | None:
    """The run's record; None for an unfinished run, if that is allowed.

    Raises:
        UsageError: not a run, an unfinished one, or one whose record this version cannot read.
    """
    try:
        text = storage.read_bytes(storage.join(run_uri, RUN_FILE))
    except storage.NotFound:
        if _has_scores(run_uri):
            if allow_unfinished:
                return None
            raise UsageError(
                "A run can be read once it is finished (its run.json is written last).",
                run_uri,
                "Run the same scan command again: it continues where this one stopped.",
            ) from None
        raise UsageError(
            "A run must be a folder that `retroscan scan --out` has written.",
            run_uri,
            "Check the path; a run holds run.json and scores/.",
        ) from None
    try:
        return RunRecord.model_validate_json(text)
    except ValidationError as error:
        raise UsageError(
            "run.json must have the form that this version of retroscan writes.",
            f"{run_uri}: {flaw(error)}",
            "Read the run with the version that wrote it (its key versions.retroscan), or scan again.",
        ) from error


def _has_scores(run_uri: str) -> bool:
    try:
        return storage.is_folder(storage.join(run_uri, SCORES_FOLDER))
    except storage.NotFound:
        return False


def versions() -> dict[str, str]:
    """Versions of Python, of this project and of what it computes with, without importing any of it."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine(gpus: list[str] | None = None) -> dict[str, Any]:
    """This machine: system, CPU model, cores this process may use, memory, and the GPUs the caller names."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpus": list(gpus or []),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        # Not every system knows these names.
        return None
