"""A model folder: what goes in comes out, and nothing that was changed on the way is believed."""

from __future__ import annotations

import copy
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from textures import textures

from models import artifact, registry
from models.detector import Detector, InputSpec
from models.errors import ArtifactError
from models.record import DETECTOR, WEIGHTS, file_sha256, model_id

SPEC = InputSpec(channels=3, height_px=32, width_px=48)
POLICY = {"channels": 3, "height_px": 32, "width_px": 48}


@pytest.fixture(scope="module")
def detector() -> Detector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return registry.create("mkd", registry.configure("mkd", {"weights": "random", "lambda_val": 0.3}), SPEC).eval()


@pytest.fixture(scope="module")
def _saved(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    artifact.save(folder, "mkd", detector, POLICY, {"seed": 7, "data": {"n": 3}})
    return folder


@pytest.fixture
def saved(_saved: Path, tmp_path: Path) -> Path:
    """A saved model of the test's own."""
    return Path(shutil.copytree(_saved, tmp_path / "model"))


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / DETECTOR).read_text())
    return found


def rewrite(folder: Path, *, honest: bool = False, **changed: object) -> None:
    """Edit detector.json; with `honest` its id follows."""
    edited = {**record(folder), **changed}
    if honest:
        edited["model_id"] = model_id(edited)
    (folder / DETECTOR).write_text(json.dumps(edited))


def test_a_saved_model_loads_with_the_same_scores_and_record(detector: Detector, saved: Path):
    loaded = artifact.load(saved)
    images = textures(3, 32, 48)
    for found, expected in zip(loaded.detector.score(images), detector.score(images), strict=True):
        assert torch.equal(found, expected)
    assert loaded.detector.config == detector.config
    assert loaded.detector.spec == SPEC
    assert not any(part.training for part in loaded.detector.modules())
    assert loaded.record["seed"] == 7
    assert loaded.record["policy"] == POLICY
    assert loaded.record["source"] == detector.source_record()
    assert loaded.model_id == record(saved)["model_id"]


def test_a_model_is_two_files_without_any_pickle(saved: Path):
    assert sorted(path.name for path in saved.iterdir()) == ["detector.json", "weights.safetensors"]
    weights = saved / WEIGHTS
    assert not zipfile.is_zipfile(weights)  # torch's own files are archives of pickles
    assert weights.read_bytes()[8:9] == b"{"  # safetensors: a length, then JSON


def test_the_model_holds_its_source_network_too(detector: Detector, saved: Path):
    assert load_file(saved / WEIGHTS).keys() == detector.state_dict().keys()
    assert any(name.startswith("source.network.") for name in detector.state_dict())


def test_the_id_follows_from_what_decides_a_score(detector: Detector, tmp_path: Path):
    def save(name: str, of: Detector = detector, policy: dict[str, Any] = POLICY, **told: object) -> str:
        return artifact.save(tmp_path / name, "mkd", of, policy, told)

    first = save("first", seed=7)
    assert len(first) == 12
    assert int(first, 16) >= 0
    assert save("told", seed=8, fitted_at="later") == first
    assert save("policy", policy={**POLICY, "resize": "pad"}) != first
    changed = copy.deepcopy(detector)
    changed.state_dict()["source_scale"][0] += 1e-6
    assert save("weights", changed) != first
    changed = copy.deepcopy(detector)
    changed.config = changed.config.model_copy(update={"lambda_val": 0.31})
    assert save("config", changed) != first


def test_saving_twice_gives_the_same_bytes(detector: Detector, saved: Path, tmp_path: Path):
    artifact.save(tmp_path / "again", "mkd", detector, POLICY, {"seed": 7, "data": {"n": 3}})
    for name in (DETECTOR, WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_one_changed_byte_of_the_weights_is_found(saved: Path):
    path = saved / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ArtifactError, match=r"recorded sha256 .* Got: .*weights\.safetensors.*restore it, or fit again"
    ):
        artifact.load(saved)


def test_cut_weights_are_found(saved: Path):
    path = saved / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="recorded sha256"):
        artifact.load(saved)


@pytest.mark.parametrize(
    "changed",
    [
        {"config": {"lambda_val": 9.0}},
        {"policy": {**POLICY, "resize": "pad"}},
        {"spec": {**SPEC.model_dump(), "height_px": 64}},
        {"kind": "other"},
        {"source": None},
        {"weights_sha256": "0" * 64},
        {"model_id": "0123456789ab"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_an_edited_record_is_found(changed: dict[str, object], saved: Path):
    rewrite(saved, **changed)
    with pytest.raises(ArtifactError, match=r"model id must follow .*it was edited\. Restore it, or fit again"):
        artifact.load(saved)


def test_what_is_only_told_may_be_edited(saved: Path):
    rewrite(saved, seed=8, note="moved from the old archive")
    assert artifact.load(saved).record["note"] == "moved from the old archive"


@pytest.mark.parametrize("version", [0, 3, None, "1"])
def test_another_format_is_refused_with_both_versions(version: object, saved: Path):
    rewrite(saved, honest=True, format=version)
    with pytest.raises(
        ArtifactError, match=rf"reads models of format 1 and 2\. Got: format {version} in .*Fit the model again"
    ):
        artifact.load(saved)


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(
        ArtifactError, match=r"holds detector\.json\. Got: .*without it\. Make one with `retroscan fit`"
    ):
        artifact.load(tmp_path)


def test_missing_weights_are_named(saved: Path):
    (saved / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match=r"holds weights\.safetensors\. Got: .*without it\."):
        artifact.load(saved)


@pytest.mark.parametrize("text", ["", "{", "\x00\x01", "[]", '"model"', "3"])
def test_a_record_that_is_no_json_object_is_refused(text: str, saved: Path):
    (saved / DETECTOR).write_text(text)
    with pytest.raises(ArtifactError, match=r"detector\.json must be"):
        artifact.load(saved)


@pytest.mark.parametrize("key", ["kind", "config", "spec", "policy", "source", "weights_sha256", "model_id"])
def test_an_incomplete_record_names_what_is_missing(key: str, saved: Path):
    kept = {name: value for name, value in record(saved).items() if name != key}
    (saved / DETECTOR).write_text(json.dumps(kept))
    with pytest.raises(ArtifactError, match=rf"must name '{key}'\. Got: "):
        artifact.load(saved)


def test_another_detectors_weights_are_found_by_their_hash(saved: Path):
    save_file({"weight": torch.zeros(3)}, saved / WEIGHTS)
    with pytest.raises(ArtifactError, match="recorded sha256"):
        artifact.load(saved)


@pytest.mark.parametrize("content", ["other", "shape", "garbage"])
def test_weights_that_do_not_fit_are_refused_though_the_record_agrees(content: str, saved: Path):
    path = saved / WEIGHTS
    if content == "garbage":
        path.write_bytes(b"no safetensors")
    else:
        state = {"weight": torch.zeros(3)} if content == "other" else load_file(path)
        if content == "shape":
            state["source_scale"] = torch.ones(9)
        save_file(state, path)
    rewrite(saved, honest=True, weights_sha256=file_sha256(path))
    with pytest.raises(
        ArtifactError, match=r"must fit the detector mkd\. Got: .*another detector or version: fit again"
    ):
        artifact.load(saved)


def test_a_model_of_an_unknown_detector_is_refused(saved: Path):
    rewrite(saved, honest=True, kind="nonesuch")
    with pytest.raises(ArtifactError, match=r"of a detector that this retroscan has\. Got: nonesuch in .*fit again"):
        artifact.load(saved)


def test_a_model_with_options_of_another_version_is_refused(saved: Path):
    rewrite(saved, honest=True, config={**record(saved)["config"], "forgotten": 1})
    with pytest.raises(ArtifactError, match=r"mkd option 'forgotten'"):
        artifact.load(saved)
