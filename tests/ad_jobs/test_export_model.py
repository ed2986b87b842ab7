"""A model as a file of ONNX: it gives the scorer's numbers without torch, and says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import scankit as kit
import torch
from detectorkit import build
from typer.testing import CliRunner

from ad_jobs.cli.app import app
from ad_jobs.errors import UsageError
from ad_jobs.export_model import export_model
from ad_jobs.scoring.devices import Cpu
from ad_jobs.scoring.model_store import open_model
from ad_jobs.scoring.scorer import Scorer
from ad_jobs.scoring.tolerances import HEATMAP_SHARE, same_scores, share_off
from models import artifact


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return kit.make_model(tmp_path_factory.mktemp("export") / "model", kind="mkd")


def test_the_file_gives_the_scorers_numbers_for_batches_of_any_size(model: str, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    export_model(model, str(out))
    opened = open_model(model)
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 65536, (1, kit.SIZE_PX, kit.SIZE_PX)).astype(np.uint16) for _ in range(7)]
    expected = list(Scorer(opened.detector, device=Cpu()).score(frames))
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    # As the metadata say: divided by 65535, and grey on all channels.
    images = np.repeat(np.stack(frames) / np.float32(65535), opened.detector.spec.channels, axis=1)
    for first, last in ((0, 1), (1, 4), (0, 7)):
        scores, heatmaps = session.run(["score", "heatmap"], {"images": images[first:last]})
        then = np.array([one.score for one in expected[first:last]])
        assert scores.dtype == heatmaps.dtype == np.float32
        assert same_scores(scores, then, float(np.abs(then).max())).all()
        assert share_off(heatmaps, np.stack([one.heatmap for one in expected[first:last]])) <= HEATMAP_SHARE


def test_the_file_says_what_it_is(model: str, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    told = export_model(model, str(out))
    opened = open_model(model)
    onnx.checker.check_model(str(out))
    file = onnx.load(str(out))
    said = {entry.key: entry.value for entry in file.metadata_props}
    assert told == {"out": str(out), "bytes": out.stat().st_size, **said}
    assert (said["model_id"], said["kind"]) == (opened.model_id, opened.kind)
    assert said["size_px"] == f"{kit.SIZE_PX}x{kit.SIZE_PX}"
    assert float(said["threshold"]) == opened.calibration.threshold
    assert float(said["heatmap_high"]) == opened.calibration.heatmap_high
    assert json.loads(said["policy"]) == opened.policy.model_dump(mode="json")
    assert "[0, 1]" in said["images"]
    (given,) = file.graph.input
    batch, *rest = given.type.tensor_type.shape.dim
    assert (batch.dim_param, [dim.dim_value for dim in rest]) == ("batch", [3, kit.SIZE_PX, kit.SIZE_PX])


def test_the_command_line_writes_it(model: str, tmp_path: Path) -> None:
    out = tmp_path / "deeper" / "model.onnx"
    found = CliRunner().invoke(app, ["export-model", model, "--out", str(out), "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["bytes"] == out.stat().st_size
    plain = CliRunner().invoke(app, ["export-model", model, "--out", str(out)])
    assert open_model(model).model_id in plain.stdout


def test_a_kind_that_is_no_single_graph_is_refused_by_name(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        detector = build("linear", patch=8, cells=(2, 4))
    artifact.save(tmp_path / "model", "linear", detector, {"channels": 3, "height_px": 32, "width_px": 48}, {})
    with pytest.raises(UsageError, match=r"linear with patches.*Linear of .*patch=8") as refused:
        export_model(str(tmp_path / "model"), str(tmp_path / "model.onnx"))
    assert refused.value.exit_code == 2
    assert not (tmp_path / "model.onnx").exists()


def test_what_is_no_file_of_onnx_is_refused_before_any_work(model: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"end with \.onnx"):
        export_model(model, str(tmp_path / "model"))
