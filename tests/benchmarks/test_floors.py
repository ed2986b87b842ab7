"""Floors and sensitivities: against other libraries, and on images whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from ad_jobs.images.policy import Limits
from benchmarks import floors, held_out

RNG = np.random.default_rng(0)
FITTED, SEEN = RNG.uniform(0, 1, (40, 1024)), RNG.uniform(0, 1, (9, 1024))


def test_principal_components_leave_what_scikit_learns_leave(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(floors, "COMPONENTS", 7)
    pca = PCA(7, svd_solver="full").fit(FITTED)
    left = SEEN - pca.inverse_transform(pca.transform(SEEN))
    np.testing.assert_allclose(floors.principal_components(FITTED, SEEN), np.square(left).mean(1), rtol=1e-9)


def test_the_nearest_neighbour_is_scipys():
    np.testing.assert_allclose(floors.nearest_neighbour(FITTED, SEEN), cdist(SEEN, FITTED).min(1), rtol=1e-9)


def test_brightness_and_gradient_are_distances_either_way():
    grey = np.full((1, 1024), 0.5)
    seen = np.concatenate([grey + 0.2, grey - 0.2, grey])
    np.testing.assert_allclose(floors.brightness(grey, seen), [0.2, 0.2, 0])
    ramp = np.tile(np.linspace(0, 1, 32), 32)[None]
    np.testing.assert_allclose(
        floors.gradient(ramp, np.concatenate([grey, ramp, 2 * ramp])), [1 / 31, 0, 1 / 31], atol=1e-12
    )


def test_a_threshold_is_of_held_out_images_alone():
    scores = np.array([1.5, 3.0, 9.0, 9.5, 10.5, 99.0])
    anomalous = np.array([False, False, False, True, True, True])
    found = held_out.sensitivities(np.arange(0, 10, 0.05), scores, anomalous)
    # 200 of them: 2 and 10 may lie above.
    assert found["0.01"]["threshold"] == pytest.approx(9.85)
    assert found["0.05"]["threshold"] == pytest.approx(9.45)
    assert [found[at]["sensitivity"]["value"] for at in found] == pytest.approx([2 / 3, 1])
    assert [found[at]["fpr"]["value"] for at in found] == [0, 0]
    assert found["0.01"]["n_held_out"] == 200
    assert 0 < found["0.01"]["sensitivity"]["low"] < 2 / 3 < found["0.01"]["sensitivity"]["high"] < 1


def test_a_data_set_that_leaks_is_shown_to(tmp_path: Path):
    """Anomalous files are larger ones of another shape, and brighter."""
    rows = ["image,anomalous,group"]
    for number in range(24):
        abnormal = number >= 16
        pixels = RNG.integers(0, 100, (40, 60 if abnormal else 50)) + (100 if abnormal else 0)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{int(abnormal)},{number // 2}")
    (tmp_path / "test.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "normal.csv").write_text("\n".join(row for row in rows if ",1," not in row) + "\n")
    (tmp_path / "split.csv").write_text(
        "image,anomalous,split\n"
        + "".join(f"{n}.png,{int(n >= 16)},{'train' if n < 12 else 'test'}\n" for n in range(24))
    )
    data = {
        "kind": "split",
        "root": str(tmp_path),
        "split": str(tmp_path / "split.csv"),
        "labels": str(tmp_path / "test.csv"),
    }
    found = floors.floors("leaking", data, tmp_path / "work")["floors"]
    for floor in ("bytes of the file", "number of pixels", "aspect"):
        assert found[floor] == [{"image_auroc": 1.0}], floor
    for seed in found["mean brightness"]:
        assert seed["image_auroc"] == 1.0
        assert seed["at_rates"]["0.05"]["sensitivity"]["value"] == 1.0
    assert len(found["nearest normal neighbour"]) == len(floors.SEEDS)


def test_images_are_split_as_a_fit_splits_them(tmp_path: Path):
    for number in range(12):
        Image.fromarray(np.full((8, 8 + number), number, np.uint8)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "list.csv").write_text("image,group\n" + "".join(f"{n:02}.png,{n // 3}\n" for n in range(12)))
    images = held_out.decoded(str(tmp_path / "list.csv"), floors.POLICY, Limits())
    assert [(image.rows, image.columns) for image in images] == [(8, 8 + n) for n in range(12)]
    assert all(image.bytes == Path(image.uri).stat().st_size for image in images)
    fitted, held = held_out.split(images, 3)
    assert {image.group for image in fitted}.isdisjoint({image.group for image in held})
    assert len(held) == 3
    assert len(fitted) == 9
