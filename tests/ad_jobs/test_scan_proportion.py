"""A scan whose flags are out of all proportion says so at its end: in its log, and for machines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scankit as kit
from typer.testing import CliRunner

from ad_jobs.cli.app import app
from ad_jobs.scan import scan
from ad_jobs.scoring.calibration import calibrate_on
from ad_jobs.scoring.held_out import HeldOut
from ad_jobs.scoring.model_store import open_fitted, write_calibration
from ad_jobs.scoring.scorer import Scorer
from cluster.session import session


def calibrated_on_the_lowest(folder: str) -> str:
    """The id of the model, whose held-out normals all score lower than most pictures do."""
    model, detector = open_fitted(folder)
    pictures = [np.rint(65535 * kit.picture(n, kit.SIZE_PX))[None].astype(np.uint16) for n in range(40)]
    lowest = min(zip(Scorer(detector).score(pictures), pictures, strict=True), key=lambda pair: pair[0].score)[1]
    held_out = [HeldOut(lowest, str(number)) for number in range(60)]
    write_calibration(folder, calibrate_on(detector, held_out, model_id=model.model_id, source="", max_fpr=0.01))
    return model.model_id


@pytest.mark.ray
def test_flags_out_of_all_proportion_are_said_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, archive, run = (str(tmp_path / name) for name in ("model", "archive", "run"))
    model_id = calibrated_on_the_lowest(kit.make_model(tmp_path / "model"))
    kit.write_archive(tmp_path / "archive", kit.good_objects(20))
    with session(num_cpus=2), caplog.at_level("WARNING", "retroscan.scan"):
        record = scan(archive, [folder], run)
    assert record.counts.flagged > 0.8 * record.counts.rows
    assert f"OUT OF PROPORTION: model {model_id} flags" in caplog.text
    assert "out_of_proportion" not in json.loads(Path(run, "run.json").read_text())
    # A finished run, asked for again.
    result = CliRunner().invoke(app, ["scan", archive, "--model", folder, "--out", run, "--json"])
    assert result.exit_code == 0, result.output
    (told,) = json.loads(result.stdout)["out_of_proportion"]
    assert (told["model_id"], told["flagged"]) == (model_id, record.counts.flagged)
