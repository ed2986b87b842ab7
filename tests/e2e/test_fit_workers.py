"""Fits through Ray Train: with one worker and two, with images in memory and without, with workers that die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import scankit as kit
import torch

from ad_jobs.fit import fit
from ad_jobs.scoring.model_store import OpenModel, open_model
from ad_jobs.specs import FitSpec
from cluster.session import session

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
WAIT_S = 400.0
EPOCHS = 30


@pytest.fixture(scope="module")
def normal(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pictures and one object of several frames: 29 images, so that no batch size divides those to fit."""
    return kit.write_archive(tmp_path_factory.mktemp("normal"), kit.good_objects(25))


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """One Ray for all fits that are not processes of their own."""
    with session(num_cpus=2):
        yield


@pytest.fixture(scope="module")
def alone(normal: str, tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    """The model of one worker, of the kind that trains nothing and so hangs on statistics alone."""
    return fitted(normal, tmp_path_factory.mktemp("alone"))


def fitted(normal: str, out: Path, **changed: int) -> OpenModel:
    fit(FitSpec(detector="padim", normal=normal, out=str(out), size=(64, 48), seed=3, **changed))
    return open_model(str(out))


def test_two_workers_fit_the_model_of_one(alone: OpenModel, normal: str, tmp_path: Path):
    both = fitted(normal, tmp_path, workers=2)
    assert both.record["fit_digest"] == alone.record["fit_digest"]
    assert both.record["data"] == alone.record["data"]
    assert (both.record["workers"], alone.record["workers"]) == (2, 1)
    theirs = alone.detector.state_dict()
    for name, tensor in both.detector.state_dict().items():
        if tensor.numel():
            gap = float((tensor.double() - theirs[name].double()).abs().max())
            assert gap <= 1e-5 * float(theirs[name].double().abs().max()) + 1e-9, f"{name} differs by {gap:.1e}"
    assert both.calibration.threshold == pytest.approx(alone.calibration.threshold, rel=1e-4)


def test_images_that_memory_does_not_hold_give_the_very_same_model(alone: OpenModel, normal: str, tmp_path: Path):
    streamed = fitted(normal, tmp_path, keep_mib=0)
    assert streamed.model_id == alone.model_id
    assert streamed.record["weights_sha256"] == alone.record["weights_sha256"]
    assert streamed.calibration.threshold == alone.calibration.threshold


# --- Workers that die


def fitting(normal: Path, out: Path, log: Path, workers: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "ad_jobs",
        "fit",
        "--detector",
        "mkd",
        "--normal",
        str(normal),
        "--out",
        str(out),
        "--size",
        "64",
        "--epochs",
        str(EPOCHS),
        "--workers",
        str(workers),
    ]
    with log.open("wb") as stderr:
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr)


def wait_for_a_checkpoint(process: subprocess.Popen[bytes], out: Path, log: Path, other: set[str]) -> set[str]:
    """The names of checkpoints that count, as soon as there is one that is not among `other`."""
    deadline = time.monotonic() + WAIT_S
    while True:
        found = set().union(*map(registered, (out / "fit").glob("*/checkpoint_manager_snapshot.json")))
        if found - other:
            return found | other
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.05)


def registered(snapshot: Path) -> set[str]:
    """The checkpoints from which Ray Train would go on: a folder counts once every rank has reported it."""
    try:
        return {found["checkpoint_dir_name"] for found in json.loads(snapshot.read_text())["checkpoint_results"]}
    except ValueError:
        # It is being written.
        return set()


def ranks(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The training workers of a fit that live."""
    return [child for child in psutil.Process(process.pid).children(recursive=True) if is_rank(child)]


def is_rank(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        # It has ended since it was listed, or is a zombie, which is a kind of it.
        return False


def test_a_killed_rank_and_then_a_killed_fit_continue_with_another_number_of_workers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    normal, log = tmp_path / "normal", tmp_path / "log"
    normal.mkdir()
    for number in range(24):
        (normal / f"{number:02d}.png").write_bytes(kit.png(number))

    process = fitting(normal, tmp_path / "killed", log, workers=2)
    seen = wait_for_a_checkpoint(process, tmp_path / "killed", log, set())
    found = ranks(process)
    assert len(found) == 2
    found[1].kill()
    wait_for_a_checkpoint(process, tmp_path / "killed", log, seen)
    # The group began again.
    assert {rank.pid for rank in ranks(process)} != {rank.pid for rank in found}
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "detector.json").exists()

    spec = FitSpec(
        detector="mkd", normal=str(normal), out=str(tmp_path / "killed"), size=(64, 64), options={"epochs": EPOCHS}
    )
    with caplog.at_level("INFO"):
        fit(spec)
    assert f" of {EPOCHS}: loss" in caplog.text
    # It did not begin anew.
    assert f"epoch 1 of {EPOCHS}" not in caplog.text
    curve = json.loads((tmp_path / "killed" / "fit" / "curve.json").read_text())
    assert [row["epoch"] for row in curve if row["phase"] == "distil"] == list(range(1, EPOCHS + 1))

    fit(spec.model_copy(update={"out": str(tmp_path / "whole")}))
    killed, whole = open_model(str(tmp_path / "killed")), open_model(str(tmp_path / "whole"))
    # Not to the bit: float32 sums over other shares and batches, whose last digit Adam carries along.
    images = torch.from_numpy(np.stack([kit.picture(number, 64) for number in range(100, 108)])).float()
    images = images.unsqueeze(1).repeat(1, 3, 1, 1)
    ours, theirs = (model.detector.score(images).image for model in (killed, whole))
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.0)
    assert killed.calibration.threshold == pytest.approx(whole.calibration.threshold, rel=0.05)
