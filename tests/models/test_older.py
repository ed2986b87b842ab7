"""Models of format 1: read at the scores they had, under their own ids, or refused with what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from detectorkit import batches, build, run_fit
from safetensors.torch import load_file, save_file
from textures import textures
from torch import Tensor

from models import artifact, registry
from models.detector import Detector
from models.errors import ArtifactError
from models.mkd import MKD
from models.older import READINGS
from models.padim import PaDiM
from models.record import DETECTOR, WEIGHTS, file_sha256, model_id, read_record

SIZE = (64, 96)
RESNET = {"backbone": "resnet18", "weights": "random", "layers": [2, 3]}
# The whole configurations of version 0.1.0 but for what a test sets.
FYD_0_1: dict[str, Any] = {
    **{"epochs": 5, "batch_size": 16, "lr": 1e-4, "norm": "native", "align_image": False, "align_stages": False},
    **{"contrast": False, "align_epochs": 30, "align_lr": 1e-3, "image_family": "rotation_translation"},
    **{"stage_family": "rotation_scale", "image_angle_deg": 30.0, "flip": False, "stn_hidden": 256, "width": 64},
    **{"patch": 3, "dims": 128, "cov_reg": 0.01, "bank": "stage", "unwarp": "score", "normalise": "position"},
    **{"blur": 4.0, "selection": "last"},
    **RESNET,
}
MKD_0_1: dict[str, Any] = {
    **{"epochs": 60, "batch_size": 16, "lr": 1e-3, "norm": "native", "layers_score": [2, 3], "cloner": "compact"},
    **{"cloner_width": 16, "bn_affine": True, "lambda_val": 0.5, "source_rescale": "rms", "score": "max"},
    **{"map": "cosine", "map_scale": "global", "detach_source": False, "blur": 4.0, "opening": True},
    **{"selection": "avg_late", "cache_mib": 4096},
    **RESNET,
}
PMAD_0_1: dict[str, Any] = {
    **{"epochs": 30, "batch_size": 8, "lr": 1e-3, "width": 16, "modes": ["none", "pmb", "skip", "pmb"], "items": 50},
    **{"partitions": [4, 4, 2, 2], "query": "channel_map", "temperature": 0.05, "hee": True, "score": "max"},
}
OLDER = {"fyd": FYD_0_1, "mkd": MKD_0_1, "pmad": PMAD_0_1}
# Names in the weights now, and in version 0.1.0.
NAMES_0_1 = (
    (r"^backbone\.", "trunk."),
    (r"^gaussians\.(\d+)\.dims$", r"dims_\1"),
    (r"^gaussians\.(\d+)\.(bank|scale)\.", r"\2s.\1."),
)


def fitted(kind: str, **options: Any) -> Detector:
    torch.manual_seed(0)
    detector = build(kind, SIZE, **{**RESNET, **options})
    run_fit(detector, batches(textures(12, *SIZE), 4), batches(textures(4, *SIZE, seed=2), 4))
    return detector


def write_0_1(folder: Path, kind: str, detector: Detector, options: dict[str, Any]) -> str:
    """A model as version 0.1.0 wrote it; its id."""
    artifact.save(folder, kind, detector, {"channels": 3}, {})
    state: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        for pattern, then in NAMES_0_1 if kind == "fyd" else ():
            name = re.sub(pattern, then, name)
        state[name] = tensor
    if kind == "fyd":
        state["turned_mean"] = torch.zeros(3, 0, 0)
    save_file(state, folder / WEIGHTS)
    record = json.loads((folder / DETECTOR).read_text())
    record |= {"format": 1, "config": options, "weights_sha256": file_sha256(folder / WEIGHTS)}
    record["model_id"] = model_id(record)
    (folder / DETECTOR).write_text(json.dumps(record))
    return str(record["model_id"])


@pytest.mark.parametrize(
    ("options", "older"),
    [
        ({}, FYD_0_1),
        # What did nothing without alignment and contrast may have had any value.
        ({}, FYD_0_1 | {"epochs": 9, "lr": 0.5, "width": 8, "cov_reg": 0.1, "unwarp": "features"}),
        (
            {"bank": "joint", "patch": 1, "dims": 100},
            FYD_0_1 | {"bank": "joint", "patch": 1, "dims": 100, "normalise": "none"},
        ),
    ],
)
def test_fyd_without_alignment_and_contrast_is_padim_under_its_id(
    options: dict[str, Any], older: dict[str, Any], tmp_path: Path
):
    detector = fitted("padim", **options)
    stored = write_0_1(tmp_path, "fyd", detector, older)
    loaded = artifact.load(tmp_path)
    assert isinstance(loaded.detector, PaDiM)
    assert loaded.model_id == stored == read_record(tmp_path)["model_id"]
    assert loaded.record["kind"] == "fyd"
    images = textures(3, *SIZE, seed=5)
    for found, wanted in zip(loaded.detector.score(images), detector.score(images), strict=True):
        assert torch.equal(found, wanted)


def test_an_mkd_model_scores_as_it_did_under_its_id(tmp_path: Path):
    detector = fitted("mkd", epochs=1, layers_score=[2, 3])
    stored = write_0_1(tmp_path, "mkd", detector, MKD_0_1)
    loaded = artifact.load(tmp_path)
    assert isinstance(loaded.detector, MKD)
    assert loaded.model_id == stored
    images = textures(3, *SIZE, seed=5)
    for found, wanted in zip(loaded.detector.score(images), detector.score(images), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("fyd", {"align_image": True}, r"those with align_image=False\. Got: align_image=True in .*--detector padim"),
        ("fyd", {"flip": True}, r"those with flip=False\. Got: flip=True in .*--detector padim`"),
        ("fyd", {"contrast": True}, r"contrast=False\. Got: contrast=True in .*fit again with `--detector padim`"),
        ("fyd", {"align_stages": True, "contrast": True}, r"align_stages=True in .*--detector padim`"),
        ("mkd", {"bn_affine": False}, r"those with bn_affine=True\. Got: bn_affine=False in .*version that wrote it"),
        # As version 0.1.0 wrote them; all of the latent vector passes through memories now.
        ("pmad", {}, r"none with width\. Got: width=16 in .*fit again with `--detector pmad`"),
        ("mkd", {"forgotten": 3}, r"none with forgotten\. Got: forgotten=3 in .*fit again with `--detector mkd`"),
    ],
)
def test_what_is_no_longer_read_is_named_with_the_remedy(
    kind: str, options: dict[str, Any], message: str, tmp_path: Path
):
    write_0_1(tmp_path, kind, build("padim", SIZE, **RESNET), OLDER[kind] | options)
    with pytest.raises(ArtifactError, match=message):
        artifact.load(tmp_path)


@pytest.mark.parametrize("kind", READINGS)
def test_readings_lead_to_registered_kinds(kind: str):
    for one in READINGS[kind]:
        assert one.kind in registry.DETECTORS
        assert not set(one.fixed) & set(one.ignored)
