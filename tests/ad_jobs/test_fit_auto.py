"""`fit --detector auto` on a cluster: candidates share what is decoded, and what is kept scores as any model."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import pytest
from fusekit import normals
from typer.testing import CliRunner

from ad_jobs.cli.app import app
from ad_jobs.fit import fit
from ad_jobs.fitting import candidates, synthetic
from ad_jobs.score import score
from ad_jobs.scoring.model_store import read_fitted


@pytest.mark.ray
def test_the_best_of_two_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    costs = {kind: candidates.COSTS_S[kind] for kind in ("linear", "padim")}
    monkeypatch.setattr(candidates, "COSTS_S", costs)
    # A defect of a kind an image.
    monkeypatch.setattr(synthetic, "FRAMES", 2)
    source, out = normals(str(tmp_path / "normal")), str(tmp_path / "model")
    asked = {"detector": "auto", "normal": source, "out": out, "size": 32, "budget": "1h"}
    before = signal.getsignal(signal.SIGINT)
    with caplog.at_level(logging.INFO, "retroscan.fit"):
        record = fit(**asked)
    # Ray's own handler, which a training leaves behind, would end whatever follows it with exit code 0.
    assert signal.getsignal(signal.SIGINT) is before
    assert caplog.text.count("24 normal images: 22 to fit, 2 held out.") == 1
    told = record["auto"]
    rows = {row["detector"]: row for row in told["candidates"]}
    assert rows[told["kept"]]["why"] == "kept"
    assert rows[told["kept"]]["model_id"] == record["model_id"] == read_fitted(out).model_id
    fitted = {kind: read_fitted(rows[kind]["folder"]).record["data"] for kind in ("linear", "padim")}
    assert fitted["linear"]["held_out_sha256"] == fitted["padim"]["held_out_sha256"]
    assert told["judged_on"] == 2
    (row,) = score(model=out, images=[str(tmp_path / "normal" / "03.png")])
    assert row["status"] == "scored"
    assert fit(**asked) == record
    shown = CliRunner().invoke(app, ["show", out]).output
    assert "chosen by auto" in shown
    assert f"{told['kept']} is kept: of those" in shown
