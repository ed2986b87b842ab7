"""How large frames and heatmaps are taken to be before any is read: what a scan divides its objects by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import scankit as kit

from ad_jobs.images.domain import Domain, DomainFile, Seen, Sight, Traits
from ad_jobs.images.policy import Limits, Tiles
from ad_jobs.index import index
from ad_jobs.scanning.intent import Intent, resolve
from ad_jobs.specs import ScanSpec


def intent(tmp_path: Path, *models: str) -> Intent:
    source = kit.write_archive(tmp_path / "archive", kit.good_objects(3))
    return resolve(ScanSpec(source=source, model=models, out=str(tmp_path / "run")))


def seen(model: str, rows: int, columns: int) -> None:
    """Say of the model that its fit saw such an image."""
    traits = Traits("picture", None, None, None, 8, rows, columns, None)
    file = DomainFile(accepts=Domain(), seen=Seen.of([Sight(traits, False, None)]))
    (Path(model) / "domain.json").write_text(file.model_dump_json())


def test_frames_of_one_size_are_of_that_size(tmp_path: Path) -> None:
    found = intent(tmp_path, kit.make_model(tmp_path / "a"), kit.make_model(tmp_path / "b", 1))
    assert found.frame_px == (kit.SIZE_PX**2,)
    assert (found.object_bytes, found.heatmap_bytes) == (2 * kit.SIZE_PX**2, 2 * 2 * kit.SIZE_PX**2)


@pytest.mark.parametrize(("rows", "columns", "expected"), [(100, 200, 20_000), (8, 200, 32 * 200)])
def test_frames_that_are_cut_are_as_large_as_the_fit_saw_them(
    rows: int, columns: int, expected: int, tmp_path: Path
) -> None:
    model = kit.make_model(tmp_path / "m", tiles=Tiles(overlap_px=4))
    seen(model, rows, columns)
    found = intent(tmp_path, model)
    assert found.frame_px == (expected,)
    # Heatmaps are kept in cells of 4 x 4.
    assert (found.object_bytes, found.heatmap_bytes) == (2 * expected, 2 * expected // 16)


def test_of_a_fit_that_does_not_say_the_worst_is_expected(tmp_path: Path) -> None:
    found = intent(tmp_path, kit.make_model(tmp_path / "m", tiles=Tiles(overlap_px=4)))
    assert found.frame_px == (Limits().max_pixels,)


def test_frames_that_are_resized_and_cut_are_of_that_size(tmp_path: Path) -> None:
    found = intent(tmp_path, kit.make_model(tmp_path / "m", tiles=Tiles(overlap_px=4, size_px=(64, 48))))
    assert found.frame_px == (64 * 48,)


@pytest.mark.parametrize(("height", "width"), [(100, 200), (8, 90)])
def test_headers_say_how_large_frames_are_and_what_they_cost(height: int, width: int, tmp_path: Path) -> None:
    model = kit.make_model(tmp_path / "m", tiles=Tiles(overlap_px=4))
    seen(model, 50, 40)
    path = Path(model, "detector.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"score_cpu_ms": 7.0}))
    images = {
        f"{number}.dcm": kit.dicom_of(number, Rows=rows, Columns=columns, PixelData=bytes(2 * rows * columns))
        for number, (rows, columns) in enumerate([(30, 20), (height, width)])
    }
    source = kit.write_archive(tmp_path / "archive", images)
    index(source, str(tmp_path / "manifest"), headers=True)
    found = resolve(ScanSpec(source=str(tmp_path / "manifest"), model=[model], out=str(tmp_path / "run")))
    # No smaller than a tile.
    expected = max(30, height, kit.SIZE_PX) * max(20, width, kit.SIZE_PX)
    assert found.frame_px == (expected,)
    assert found.score_ms == pytest.approx(7.0 * expected / (50 * 40))
