"""detector.json: what a model is, and the hash of its weights.

Without torch: who only reads a record does without it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from models.errors import ArtifactError

FORMAT = 2
# Those that are still read; see models/older.py.
FORMATS = (1, FORMAT)
DETECTOR = "detector.json"
WEIGHTS = "weights.safetensors"
# Of the acceptance domain that lies beside them.
DOMAIN_SHA256 = "domain_sha256"
# What decides a score. The rest of the record (data, versions, times) tells how the model came to be.
DECIDING = ("format", "kind", "config", "spec", "policy", "source")


def model_id(record: dict[str, Any]) -> str:
    """12 hex digits of sha256 over the deciding part of detector.json and the weights."""
    deciding = {key: record.get(key) for key in (*DECIDING, "weights_sha256")}
    # Which objects are scored at all; models of earlier versions take every one.
    if DOMAIN_SHA256 in record:
        deciding[DOMAIN_SHA256] = record[DOMAIN_SHA256]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]


def read_record(folder: Path) -> dict[str, Any]:
    """detector.json, checked for format, completeness and its own id.

    Raises:
        ArtifactError: no model here, another format, or an edited record.
    """
    path = folder / DETECTOR
    if not path.is_file():
        raise ArtifactError(
            f"A model folder holds {DETECTOR}.", f"{folder}, without it", "Make one with `retroscan fit`."
        )
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ArtifactError(
            f"{DETECTOR} must be JSON.", f"{folder} ({error})", "Fit again or restore it from a copy."
        ) from error
    if not isinstance(record, dict):
        raise ArtifactError(f"{DETECTOR} must be a JSON object.", f"{folder}, with another", "Fit again.")
    if record.get("format") not in FORMATS:
        raise ArtifactError(
            f"This retroscan reads models of format {' and '.join(map(str, FORMATS))}.",
            f"format {record.get('format')} in {folder}",
            "Fit the model again, or scan it with the version that wrote it (detector.json, key versions).",
        )
    missing = [key for key in (*DECIDING, "weights_sha256", "model_id") if key not in record]
    if missing:
        raise ArtifactError(f"{DETECTOR} must name {missing[0]!r}.", f"{folder}, without it", "Fit again.")
    if model_id(record) != record["model_id"]:
        raise ArtifactError(
            f"The model id must follow from {DETECTOR}.",
            f"{record['model_id']} in {folder}, but its content gives {model_id(record)}: it was edited",
            "Restore it, or fit again with the options you want.",
        )
    return record


def check_weights(folder: Path, record: dict[str, Any]) -> None:
    """Raise ArtifactError unless the weights in `folder` have the hash that their record names."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise ArtifactError(f"A model folder holds {WEIGHTS}.", f"{folder}, without it", "Restore it, or fit again.")
    found = file_sha256(path)
    if found != record["weights_sha256"]:
        raise ArtifactError(
            f"The weights must have the recorded sha256 {record['weights_sha256'][:12]}….",
            f"{found[:12]}… in {path}",
            "The file was changed or damaged: restore it, or fit again.",
        )


def file_sha256(path: Path) -> str:
    """sha256 of a local file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def networks(source: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The pretrained networks that a record's `source` tells of, each once: of a fused model those of its members."""
    if source is None:
        return []
    if "members" not in source:
        return [source]
    found: list[dict[str, Any]] = []
    for member in source["members"]:
        found += [network for network in networks(member["source"]) if network not in found]
    return found
