"""A fit whose driver is killed in the middle, and what the same command makes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scankit as kit
import torch

from ad_jobs.modelstore import open_model

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
WAIT_S = 400.0


def fitting(normal: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "ad_jobs", "fit", "--detector", "mkd", "--normal", str(normal), "--out", str(out),
        "--size", "32", "--epochs", "40",
    ]  # fmt: skip
    with log.open("wb") as stderr:
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr)


def test_a_killed_fit_continues_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    normal, log = tmp_path / "normal", tmp_path / "log"
    normal.mkdir()
    for number in range(24):
        (normal / f"{number:02d}.png").write_bytes(kit.png(number))

    undisturbed = fitting(normal, tmp_path / "whole", tmp_path / "log-whole")
    process = fitting(normal, tmp_path / "killed", log)
    deadline = time.monotonic() + WAIT_S
    while not list((tmp_path / "killed" / "fit").glob("*/checkpoint_*/fit.pt")):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "detector.json").exists()

    assert fitting(normal, tmp_path / "killed", log).wait(timeout=WAIT_S) == 0, log.read_text()
    assert "epoch 1 of 40" not in log.read_text()  # it did not begin anew
    assert undisturbed.wait(timeout=WAIT_S) == 0, (tmp_path / "log-whole").read_text()
    killed, whole = open_model(str(tmp_path / "killed")), open_model(str(tmp_path / "whole"))
    # Not to the bit: the source's maps are computed again in other batches, and Adam carries their last digit along.
    images = torch.from_numpy(np.stack([kit.picture(number, 32) for number in range(100, 108)])).float()
    images = images.unsqueeze(1).repeat(1, 3, 1, 1)
    ours, theirs = (model.detector.score(images).image for model in (killed, whole))
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.0)
    assert killed.calibration.threshold == pytest.approx(whole.calibration.threshold, rel=0.05)
