"""A model that scores images in tiles, from its fit to the run's verification, on images of several sizes."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import scankit as kit
import torch
from PIL import Image

from ad_jobs.cli.show import shown_text
from ad_jobs.errors import TooManyFailed
from ad_jobs.export_model import export_model
from ad_jobs.fit import fit
from ad_jobs.images.tiling import STORED_CELL_PX
from ad_jobs.index import index
from ad_jobs.report import report
from ad_jobs.results.read import open_heatmap, read_scores
from ad_jobs.scan import scan
from ad_jobs.score import score
from ad_jobs.scoring.model_store import open_model, read_model
from ad_jobs.show import show
from ad_jobs.verify import verify

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]

TILE_PX = 32
# Of the archive's pictures, by name: one is smaller than a tile, one takes many.
SIDES = {"tile.png": 32, "small.png": 20, "odd.png": 77, "more.png": 33, "large.png": 300}
COLOUR = {"colour.jpg": kit.jpeg(45)}
# A bright spot of a few pixels, and where.
SPOT = (250, 41)


def with_spot() -> bytes:
    values = np.rint(kit.picture(50, 300) * 255).astype(np.uint8)
    values[SPOT[0] - 2 : SPOT[0] + 3, SPOT[1] - 2 : SPOT[1] + 3] = np.indices((5, 5)).sum(0) % 2 * 255
    file = BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model fitted by one worker and one by two, an archive, and its run by the first."""
    home = tmp_path_factory.mktemp("tiles")
    normal = kit.write_archive(home / "normal", {f"{n}.png": kit.png(n, 60 + n) for n in range(21)} | COLOUR)
    kit.write_archive(
        home / "archive",
        {name: kit.png(40 + n, side) for n, (name, side) in enumerate(SIDES.items())}
        | {"spot.png": with_spot(), "broken.png": kit.png(60)[:200]}
        | COLOUR,
    )
    for workers in (1, 2):
        fit(
            detector="knn",
            normal=normal,
            out=str(home / f"model-{workers}"),
            tile=TILE_PX,
            overlap=8,
            workers=workers,
            # Of the second nothing stays decoded.
            keep_mib=None if workers == 1 else 0,
            options={"items": 256, "layers": [2, 3]},
        )
    scan(str(home / "archive"), str(home / "model-1"), str(home / "run"), heatmaps="all")
    return home


def rows(home: Path) -> pd.DataFrame:
    table = read_scores(str(home / "run"))
    return table.set_index(table["uri"].map(lambda uri: Path(uri).name))


def test_the_model_says_how_it_cuts_and_is_the_same_whoever_fitted_it(home: Path) -> None:
    one, two = (read_model(str(home / f"model-{workers}")) for workers in (1, 2))
    assert one.record["policy"]["tiles"] == {"overlap_px": 8, "size_px": None}
    assert one.record["data"]["n_tiles_fitted"] > 4 * one.record["data"]["n_fitted"]
    # Batches of other sizes round otherwise.
    ours, theirs = (open_model(model.uri).detector.state_dict() for model in (one, two))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert one.calibration.threshold == pytest.approx(two.calibration.threshold, rel=1e-5)
    told = shown_text(show(folder=home / "model-1"))
    assert "tiles        of 32 px, overlapping by 8, cut from images at their own resolution" in told
    assert f"({one.record['data']['n_tiles_fitted']} tiles)" in told


def test_images_of_every_size_have_scores_that_score_and_verify_find_again(home: Path) -> None:
    found = rows(home)
    scored = found[found["status"] == "scored"]
    assert sorted(scored.index) == sorted([*SIDES, *COLOUR, "spot.png"])
    assert scored.loc["odd.png", ["rows", "columns"]].tolist() == [77, 77]
    images = [str(home / "archive" / name) for name in scored.index]
    again = score(model=str(home / "model-1"), images=images)
    np.testing.assert_allclose([row["score"] for row in again], scored["score"], rtol=1e-5)
    checked = verify(str(home / "run"), sample=100)
    assert (checked.differences, checked.sampled) == ([], 8)


def test_a_heatmap_lies_over_its_image_and_its_anchor_is_the_threshold(home: Path) -> None:
    found = rows(home)
    scale = read_model(str(home / "model-1")).calibration
    assert scale.heatmap_anchor == scale.threshold
    reach = scale.heatmap_high - scale.heatmap_low
    for name, side in (SIDES | {"spot.png": 300}).items():
        heatmap = open_heatmap(str(home / "run"), found.loc[name, "heatmap"])
        assert heatmap.values.shape == (-(-side // STORED_CELL_PX),) * 2
        assert heatmap.on_source().shape == (side, side)
        hottest = (found.loc[name, "score"] - scale.heatmap_low) / reach
        assert heatmap.values.max() == pytest.approx(np.clip(hottest, 0, 1), abs=1e-4)
    spot = open_heatmap(str(home / "run"), found.loc["spot.png", "heatmap"]).on_source()
    hottest = np.unravel_index(spot.argmax(), spot.shape)
    assert np.abs(np.subtract(hottest, SPOT)).max() <= 8


def test_the_same_command_again_finds_the_run_and_the_model(home: Path) -> None:
    before = (home / "run" / "run.json").read_bytes()
    scan(str(home / "archive"), str(home / "model-1"), str(home / "run"), heatmaps="all")
    assert (home / "run" / "run.json").read_bytes() == before
    (model,) = json.loads(before)["models"]
    assert model["policy"]["tiles"]["overlap_px"] == 8


def test_a_scan_that_ended_early_goes_on_and_finds_the_same(home: Path) -> None:
    asked: dict[str, Any] = {"heatmaps": "all", "chapter_objects": 3, "manifest_out": str(home / "early-manifest")}
    source, model, run = (str(home / name) for name in ("archive", "model-1", "early"))
    with pytest.raises(TooManyFailed):
        scan(source, model, run, max_failed=0.0, **asked)
    assert not (home / "early" / "run.json").exists()
    scan(source, model, run, **asked)
    found = read_scores(run)
    found = found.set_index(found["uri"].map(lambda uri: Path(uri).name)).sort_index()
    expected = rows(home).sort_index()
    assert found["status"].tolist() == expected["status"].tolist()
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-5)


def test_what_is_new_or_failed_is_scored_since_then(home: Path, tmp_path: Path) -> None:
    new = home / "archive" / "new.png"
    new.write_bytes(kit.png(61, 90))
    try:
        index(str(home / "archive"), str(tmp_path / "manifest"))
        asked = {"since": str(home / "run"), "retry": "failed"}
        record = scan(str(tmp_path / "manifest"), str(home / "model-1"), str(tmp_path / "run"), **asked)
    finally:
        new.unlink()
    assert {Path(uri).name for uri in read_scores(str(tmp_path / "run"))["uri"]} == {"new.png", "broken.png"}
    assert (record.counts.scored, record.counts.failed) == (1, 1)


def test_the_report_and_the_graph_say_what_a_tile_is(home: Path) -> None:
    report(run=str(home / "run"))
    page = (home / "run" / "report" / "index.html").read_text()
    assert "tiles of 32 px, overlapping by 8" in page
    export_model(str(home / "model-1"), str(home / "model.onnx"))
    said = {one.key: one.value for one in onnx.load(home / "model.onnx").metadata_props}
    assert said["size_px"] == "32x32"
    assert said["tiles"].startswith("The graph scores one tile.")
