"""Turned data sets: a mask moves with its image, and every frame of the phantoms becomes a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ad_jobs.phantom import generate
from benchmarks import datasets


def pixels(path: Path | str) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened).astype(int)


def test_a_mask_moves_with_its_image(tmp_path: Path):
    square = np.zeros((40, 60), np.uint8)
    square[10:18, 40:52] = 255
    source = tmp_path / "source"
    source.mkdir()
    for name in ("image.png", "mask.png"):
        Image.fromarray(square).save(source / name)
    rows = [{"image": "image.png", "mask": "mask.png"}]
    root = datasets._turned(rows, source, tmp_path / "turned", degrees=20, shift=0.1)
    moved = pixels(root / "image.png")
    assert np.array_equal(moved, pixels(root / "mask.png"))
    assert np.abs(moved - square).max() > 200


def test_every_frame_of_the_phantoms_is_a_picture(tmp_path: Path):
    demo = tmp_path / "demo"
    made = generate(
        demo, train=2, calibration=0, normals=1, anomalous=1, multiframe=1, broken=0, non_images=0, size_px=64
    )
    lists = datasets._turned_phantoms(demo, tmp_path, {"degrees": 20.0, "shift": 0.1})
    rows = list(datasets.read_rows(lists.archive))
    assert len(rows) == made.frames == len({row["image"] for row in rows})
    assert [row["group"] for row in datasets.read_rows(lists.normal)] == ["0000", "0000"]
    for row in rows:
        assert bool(row["mask"]) == (row["anomalous"] == "1")
        for path in filter(None, (row["image"], row["mask"])):
            assert pixels(path).shape == (datasets.PHANTOM_PX, datasets.PHANTOM_PX)
