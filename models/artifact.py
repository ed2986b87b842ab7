"""A fitted detector on disk: the only reader and writer of weights. No pickle, so opening a model runs nothing.

detector.json         kind, config, input spec, and a record of how it was fitted
weights.safetensors   every parameter and buffer, the frozen source network included: a model needs no other file
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models import registry
from models.detector import Detector, InputSpec
from models.errors import ArtifactError, ConfigError
from models.older import OLDER_FORMAT, reading
from models.record import DETECTOR, FORMAT, WEIGHTS, check_weights, file_sha256, model_id, read_record


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


def load(folder: Path) -> Artifact:
    """The model in `folder`, on the CPU, in eval mode, its weights checked against their hash.

    Raises:
        ArtifactError: an incomplete, damaged or foreign model.
    """
    record = read_record(folder)
    check_weights(folder, record)
    return Artifact(build(folder, record), record)


def build(folder: Path, record: dict[str, Any]) -> Detector:
    """The detector of a record and weights that are checked already, on the CPU, in eval mode.

    Raises:
        ArtifactError: a detector or weights that this version does not have.
    """
    kind, options = record["kind"], record["config"]
    older = reading(kind, options, folder) if record["format"] == OLDER_FORMAT else None
    if older is not None:
        kind, options = older.kind, older.options(options)
    try:
        config = registry.configure(kind, options)
        spec = InputSpec.model_validate(record["spec"])
        detector = registry.create(kind, config, spec, pretrained=False)
    except ConfigError as error:
        raise ArtifactError(
            "A model must be of a detector that this retroscan has.",
            f"{kind} in {folder} ({error})",
            "Scan it with the version that wrote it (detector.json, key versions), or fit again.",
        ) from error
    try:
        state = load_file(folder / WEIGHTS)
        detector.load_state_dict(state if older is None else older.weights(state))
    # RuntimeError is torch's report of missing and unexpected names.
    except (SafetensorError, RuntimeError) as error:
        raise ArtifactError(
            f"The weights must fit the detector {kind}.",
            f"{folder / WEIGHTS} ({str(error).splitlines()[0]})",
            "They belong to another detector or version: fit again.",
        ) from error
    return detector.eval()
