"""A model of `decode: reduced`, from its fit to the run's verification, beside one of whole frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import reducedkit
import scankit as kit

from ad_jobs.fit import fit
from ad_jobs.results.read import read_scores
from ad_jobs.scan import scan
from ad_jobs.score import score
from ad_jobs.scoring.model_store import open_model, read_model
from ad_jobs.scoring.scorer import Scorer
from ad_jobs.verify import verify

pytestmark = pytest.mark.ray

# Four times the input's side, and not a multiple of it.
SIDE_PX = 4 * kit.SIZE_PX + 3


def jpeg_2000(number: int, *, resolutions: int = 6) -> bytes:
    return reducedkit.jpeg_2000(number, SIDE_PX, resolutions)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fitted model, `reduced`, one of whole frames, `whole`, an archive, and their run."""
    home = tmp_path_factory.mktemp("reduced")
    normal = kit.write_archive(home / "normal", {f"{n}.dcm": jpeg_2000(n) for n in range(24)})
    objects = {f"{n}.dcm": jpeg_2000(n) for n in range(30, 36)}
    objects |= {"single.dcm": jpeg_2000(40, resolutions=1), "broken.dcm": jpeg_2000(41)[:4000], "a.png": kit.png(42)}
    kit.write_archive(home / "archive", objects)
    fit(detector="linear", normal=normal, out=str(home / "reduced"), size=kit.SIZE_PX, decode="reduced")
    kit.make_model(home / "whole")
    models = [str(home / "reduced"), str(home / "whole")]
    # A picture is none of what the model was fitted on.
    scan(str(home / "archive"), models, str(home / "run"), heatmaps="all", accept=["kind"])
    return home


def rows(home: Path, name: str) -> pd.DataFrame:
    table = read_scores(str(home / "run"))
    of_model = table[table["model_id"] == read_model(str(home / name)).model_id]
    return of_model.set_index(of_model["uri"].map(lambda uri: Path(uri).name))


def test_it_is_part_of_the_model(home: Path) -> None:
    assert read_model(str(home / "reduced")).record["policy"]["decode"] == "reduced"
    assert read_model(str(home / "whole")).policy.decode == "full"


def test_scan_and_score_and_verify_decode_alike(home: Path) -> None:
    found = rows(home, "reduced")
    scored = found[found["status"] == "scored"]
    images = [str(home / "archive" / name) for name in scored.index]
    again = score(model=str(home / "reduced"), images=images, accept=["kind"])
    np.testing.assert_allclose([row["score"] for row in again], scored["score"], rtol=1e-5)
    checked = verify(str(home / "run"), sample=100)
    assert checked.differences == []
    assert (checked.sampled, checked.whole) == (9, [])


def test_verify_full_tells_what_whole_frames_would_change(home: Path) -> None:
    checked = verify(str(home / "run"), sample=100, full=True)
    assert checked.ok
    reduced, whole = checked.whole
    assert (reduced["decode"], whole["decode"]) == ("reduced", "full")
    assert (whole["frames"], whole["largest"]) == (0, None)
    found = rows(home, "reduced")
    scored = found[found["status"] == "scored"]
    assert reduced["frames"] == len(scored) == 8
    opened = open_model(str(home / "reduced"))
    policy = opened.policy.model_copy(update={"decode": "full"})
    images = [reducedkit.pixels((home / "archive" / name).read_bytes(), policy) for name in scored.index]
    again = np.array([frame.score for frame in Scorer(opened.detector).score(images)])
    change = np.abs(again - scored["score"].to_numpy())
    assert reduced["largest"] == pytest.approx(change.max(), rel=1e-3)
    assert reduced["median"] == pytest.approx(np.median(change), rel=1e-2)
    assert 0 < reduced["largest"] < reduced["spread"]
    flagged = again > opened.calibration.threshold
    assert reduced["flagged"] == (flagged & ~scored["flagged"].astype(bool)).sum()


def test_every_object_has_its_row_and_its_size(home: Path) -> None:
    for name in ("reduced", "whole"):
        found = rows(home, name)
        assert found["status"].value_counts().to_dict() == {"scored": 8, "failed": 1}
        assert found.loc["30.dcm", ["rows", "columns"]].tolist() == [SIDE_PX, SIDE_PX]


def test_the_row_says_what_was_decoded_whole_and_only_to_whom_it_matters(home: Path) -> None:
    assert rows(home, "reduced")["error_detail"].get("single.dcm") == "decoded_whole"
    assert rows(home, "reduced").drop(["single.dcm", "broken.dcm"])["error_detail"].isna().all()
    assert rows(home, "whole").drop("broken.dcm")["error_detail"].isna().all()
