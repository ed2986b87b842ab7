"""A fitted detector on disk: the only reader and writer of weights. No pickle, so opening a model runs nothing.

detector.json         kind, config, input spec, and a record of how it was fitted
weights.safetensors   every parameter and buffer, the frozen source network included: a model needs no other file
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models import registry
from models.detector import ArtifactError, ConfigError, Detector, InputSpec

FORMAT = 1
DETECTOR = "detector.json"
WEIGHTS = "weights.safetensors"
# What decides a score. The rest of the record (data, versions, times) tells how the model came to be.
DECIDING = ("format", "kind", "config", "spec", "policy", "source")


@dataclass(frozen=True)
class Artifact:
    """A loaded model: the detector in eval mode, its record, and its id."""

    detector: Detector
    record: dict[str, Any]

    @property
    def model_id(self) -> str:
        """12 hex digits over what decides a score."""
        return str(self.record["model_id"])


def save(folder: Path, kind: str, detector: Detector, policy: dict[str, Any], record: dict[str, Any]) -> str:
    """Write detector.json and weights.safetensors; the model id.

    Args:
        folder: a local folder, made where missing.
        kind: the registry's name of the detector.
        detector: fitted.
        policy: the pixel policy its images were prepared with, as plain values.
        record: how it was fitted (data fingerprint, seed, versions): told, not deciding.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    full: dict[str, Any] = {
        "format": FORMAT,
        "kind": kind,
        "config": detector.config.model_dump(mode="json"),
        "spec": detector.spec.model_dump(mode="json"),
        "policy": policy,
        "source": detector.source_record(),
        **record,
        "weights_sha256": file_sha256(folder / WEIGHTS),
    }
    full["model_id"] = model_id(full)
    (folder / DETECTOR).write_text(json.dumps(full, indent=2, sort_keys=True) + "\n")
    return str(full["model_id"])


def model_id(record: dict[str, Any]) -> str:
    """12 hex digits of sha256 over the deciding part of detector.json and the weights."""
    deciding = {key: record.get(key) for key in (*DECIDING, "weights_sha256")}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]


def read_record(folder: Path) -> dict[str, Any]:
    """detector.json, checked for format, completeness and its own id.

    Raises:
        ArtifactError: no model here, another format, or an edited record.
    """
    path = folder / DETECTOR
    if not path.is_file():
        raise ArtifactError(
            f"A model folder holds {DETECTOR}. Got: {folder}, without it. Make one with `retroscan fit`."
        )
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ArtifactError(
            f"{DETECTOR} must be JSON. Got: {folder} ({error}). Fit again or restore it from a copy."
        ) from error
    if not isinstance(record, dict):
        raise ArtifactError(f"{DETECTOR} must be a JSON object. Got: {folder}, with another. Fit again.")
    if record.get("format") != FORMAT:
        raise ArtifactError(
            f"This retroscan reads models of format {FORMAT}. Got: format {record.get('format')} in {folder}. Fit the "
            "model again, or scan it with the version that wrote it (detector.json, key versions)."
        )
    missing = [key for key in (*DECIDING, "weights_sha256", "model_id") if key not in record]
    if missing:
        raise ArtifactError(f"{DETECTOR} must name {missing[0]!r}. Got: {folder}, without it. Fit again.")
    if model_id(record) != record["model_id"]:
        raise ArtifactError(
            f"The model id must follow from {DETECTOR}. Got: {record['model_id']} in {folder}, but its content gives "
            f"{model_id(record)}: it was edited. Restore it, or fit again with the options you want."
        )
    return record


def load(folder: Path) -> Artifact:
    """The model in `folder`, on the CPU, in eval mode, its weights checked against their hash.

    Raises:
        ArtifactError: an incomplete, damaged or foreign model.
    """
    record = read_record(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise ArtifactError(
            f"A model folder holds {WEIGHTS}. Got: {folder}, without it. Restore it, or fit again."
        )
    found = file_sha256(path)
    if found != record["weights_sha256"]:
        raise ArtifactError(
            f"The weights must have the recorded sha256 {record['weights_sha256'][:12]}…. Got: {found[:12]}… in {path}. "
            "The file was changed or damaged: restore it, or fit again."
        )
    try:
        config = registry.configure(record["kind"], record["config"])
        spec = InputSpec.model_validate(record["spec"])
        detector = registry.create(record["kind"], config, spec, pretrained=False)
    except ConfigError as error:
        raise ArtifactError(
            f"A model must be of a detector that this retroscan has. Got: {record['kind']} in {folder} ({error}) "
            "Scan it with the version that wrote it (detector.json, key versions), or fit again."
        ) from error
    try:
        detector.load_state_dict(load_file(path))
    # RuntimeError is torch's report of missing and unexpected names.
    except (SafetensorError, RuntimeError) as error:
        raise ArtifactError(
            f"The weights must fit the detector {record['kind']}. Got: {path} ({str(error).splitlines()[0]}). It belongs to "
            "another detector or version: fit again."
        ) from error
    detector.eval()
    return Artifact(detector, record)


def file_sha256(path: Path) -> str:
    """sha256 of a local file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
