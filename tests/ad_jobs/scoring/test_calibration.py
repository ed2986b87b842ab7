"""Calibrations: the heatmaps' global scale, and what is written beside a model."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import scankit as kit

from ad_jobs.errors import UsageError
from ad_jobs.results.heatmaps import on_scale
from ad_jobs.scoring.calibration import HEADROOM, Calibration, HeatmapRange
from ad_jobs.scoring.model_store import read_model


def test_a_heatmap_on_the_global_scale_is_clipped_at_its_ends():
    heatmap = np.array([[1.0, 2.0, 3.0], [4.0, 6.0, 9.0]], np.float32)
    unit = on_scale(heatmap, 2.0, 6.0)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [[0.0, 0.0, 0.25], [0.5, 1.0, 1.0]])


def test_normal_heatmaps_lie_in_the_lowest_fifth():
    rng = np.random.default_rng(0)
    heatmaps = [rng.gamma(2.0, 0.1, (40, 30)).astype(np.float32) for _ in range(50)]
    measured = HeatmapRange()
    for heatmap in heatmaps:
        measured.add(heatmap)
    unit = np.stack([on_scale(heatmap, *measured.scale()) for heatmap in heatmaps])
    assert np.quantile(unit, 0.999) <= 1 / HEADROOM
    assert unit.max() < 1
    # And not squeezed into nothing.
    assert np.quantile(unit, 0.999) > 0.5 / HEADROOM


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
def test_flat_heatmaps_of_normals_still_give_a_scale(value: float):
    flat = np.full((8, 8), value, np.float32)
    measured = HeatmapRange()
    measured.add(flat)
    low, high = measured.scale()
    assert high > low
    assert not on_scale(flat, low, high).any()


def test_a_calibration_survives_json_and_refuses_unknown_keys():
    saved = Calibration(
        model_id="0" * 12,
        threshold=0.5,
        rule="max_fpr",
        target=0.01,
        method="quantile",
        n_normal=100,
        n_anomalous=0,
        rate=0.01,
        rate_low=0.0,
        rate_high=0.1,
        heatmap_low=0.0,
        heatmap_high=1.0,
        source="normals",
        set_at="2026-01-01T00:00:00+00:00",
    )
    assert Calibration.model_validate_json(saved.model_dump_json()) == saved
    with pytest.raises(ValueError, match="Extra inputs"):
        Calibration.model_validate({**saved.model_dump(), "note": "edited"})


@pytest.mark.parametrize("field", ["threshold", "heatmap_high", "rate"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(tmp_path: Path, field: str, value: str) -> None:
    folder = Path(kit.make_model(tmp_path / "model"))
    path = folder / "calibration.json"
    path.write_text(re.sub(rf'("{field}": )[^,\n]+', rf"\g<1>{value}", path.read_text()))
    with pytest.raises(UsageError, match=r"calibration\.json must hold .*finite number"):
        read_model(str(folder))
