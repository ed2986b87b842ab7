"""Calibrations: the heatmaps' global scale, and what is written beside a model."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import dicomkit
import numpy as np
import pyarrow.parquet as pq
import pytest
import runkit
import scankit as kit

from ad_jobs.archive.identifiers import Identifiers
from ad_jobs.calibrate import calibrate
from ad_jobs.cli.show import shown_text
from ad_jobs.errors import UsageError
from ad_jobs.results.heatmaps import on_scale
from ad_jobs.scoring.calibration import HEADROOM, Calibration, HeatmapRange, calibrate_on, kept_calibrations
from ad_jobs.scoring.held_out import HELD_OUT, HeldOut, naming_of, read_held_out
from ad_jobs.scoring.model_store import open_fitted, read_model, write_calibration
from ad_jobs.scoring.scorer import Scorer
from ad_jobs.show import show


def test_a_heatmap_on_the_global_scale_is_clipped_at_its_ends():
    heatmap = np.array([[1.0, 2.0, 3.0], [4.0, 6.0, 9.0]], np.float32)
    unit = on_scale(heatmap, 2.0, 6.0)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [[0.0, 0.0, 0.25], [0.5, 1.0, 1.0]])


def ranged(heatmaps: list[np.ndarray], *, higher: float = 0.0) -> HeatmapRange:
    """What is told of heatmaps whose scores are their maxima, or higher."""
    measured = HeatmapRange()
    for heatmap in heatmaps:
        measured.add(heatmap, float(heatmap.max()) + higher)
    return measured


def test_the_anchor_is_the_threshold_exactly_where_scores_are_maxima_and_else_the_hottest_normal_pixels():
    rng = np.random.default_rng(0)
    heatmaps = [rng.gamma(2.0, 0.1, (40, 30)).astype(np.float32) for _ in range(50)]
    low, anchor, high = ranged(heatmaps).scale(1.25)
    assert anchor == 1.25
    assert high == pytest.approx(low + HEADROOM * (1.25 - low))
    # Another threshold, another anchor, of the same pixels.
    assert ranged(heatmaps).scale(1.5).anchor == 1.5
    low, anchor, high = ranged(heatmaps, higher=0.5).scale(1.25)
    unit = np.stack([on_scale(heatmap, low, high) for heatmap in heatmaps])
    assert 0.5 / HEADROOM < np.quantile(unit, 0.999) <= 1 / HEADROOM
    # A threshold below what is cold says nothing of heat.
    assert ranged(heatmaps).scale(-3.0) == (low, anchor, high)


@pytest.mark.parametrize("detector", ["padim", "autoencoder"])
def test_a_calibration_is_anchored_at_the_threshold_that_it_sets(tmp_path: Path, detector: str) -> None:
    folder = kit.make_model(tmp_path / "model", kind=detector)
    opened = open_fitted(folder)[1]
    rng = np.random.default_rng(1)
    frames = [HeldOut(rng.integers(0, 65536, (1, kit.SIZE_PX, kit.SIZE_PX)).astype(np.uint16)) for _ in range(8)]
    found = [
        calibrate_on(opened, frames, model_id="0" * 12, source="", max_fpr=rate).calibration for rate in (0.2, 0.7)
    ]
    assert found[0].threshold > found[1].threshold
    if detector == "padim":
        assert [one.heatmap_anchor for one in found] == [one.threshold for one in found]
    else:
        assert found[0].heatmap_anchor == found[1].heatmap_anchor != found[0].threshold
    for one in found:
        assert one.anchor_on_scale == pytest.approx(1 / HEADROOM)


def test_calibrations_of_earlier_versions_are_anchored_at_a_third():
    saved = runkit.calibration(heatmap_low=1.0, heatmap_high=4.0)
    assert (saved.heatmap_anchor, saved.anchor, saved.anchor_on_scale) == (None, 2.0, pytest.approx(1 / 3))
    with pytest.raises(ValueError, match="heatmap_anchor must lie between"):
        runkit.calibration(heatmap_anchor=1.0)


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
def test_flat_heatmaps_of_normals_still_give_a_scale(value: float):
    flat = np.full((8, 8), value, np.float32)
    low, anchor, high = ranged([flat]).scale(value)
    assert low < anchor < high
    assert not on_scale(flat, low, high).any()


def test_a_calibration_survives_json_and_refuses_unknown_keys():
    saved = runkit.calibration()
    assert Calibration.model_validate_json(saved.model_dump_json()) == saved
    with pytest.raises(ValueError, match="Extra inputs"):
        Calibration.model_validate({**saved.model_dump(), "note": "edited"})


def test_an_id_says_what_a_calibration_is_whenever_and_wherever_it_was_set():
    saved = runkit.calibration()
    # As earlier versions reckoned it, which knew fewer fields: a model keeps its scores under this name.
    assert saved.id == "90de0e210d76"
    assert saved.model_copy(update={"set_at": "2027", "source": "elsewhere"}).id == saved.id
    others = [{"threshold": 0.6}, {"heatmap_high": 2.0}, {"held_out_sha256": "00"}, {"model_id": "1" * 12}]
    assert len({saved.model_copy(update=other).id for other in others} | {saved.id}) == 5


def test_held_out_scores_are_kept_as_they_were_scored(tmp_path: Path) -> None:
    detector, model_id = open_fitted(kit.make_model(tmp_path / "model"))[1], "0" * 12
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 65536, (1, kit.SIZE_PX, kit.SIZE_PX)).astype(np.uint16) for _ in range(7)]
    groups = ["a", "b", "a", "", "", "b", "c"]
    held_out = [
        HeldOut(pixels, f"{i:064x}", i % 2, group) for i, (pixels, group) in enumerate(zip(frames, groups, strict=True))
    ]
    calibration, body = calibrate_on(
        detector, iter(held_out[:5]), model_id=model_id, source="", anomalous=held_out[5:], max_fnr=0.0
    )
    assert hashlib.sha256(body).hexdigest() == calibration.held_out_sha256
    assert (calibration.n_normal, calibration.n_groups, calibration.n_anomalous) == (5, 4, 2)
    (tmp_path / "scores.parquet").write_bytes(body)
    table = read_held_out(str(tmp_path / "scores.parquet"), str(calibration.held_out_sha256))
    assert table.schema.names == [name for name in HELD_OUT.names if name != "site"], "nobody asked for it"
    rows = table.to_pydict()
    assert rows["object"] == [one.object for one in held_out]
    assert rows["frame"] == [0, 1, 0, 1, 0, 1, 0]
    # Held out together or not; an image without a group is by itself.
    assert rows["group"] == [0, 1, 0, 2, 3, 1, 4]
    assert rows["anomalous"] == [False] * 5 + [True] * 2
    np.testing.assert_array_equal(rows["score"], [one.score for one in Scorer(detector).score(frames)])


def test_what_held_out_objects_are_is_kept_and_who_they_are_is_not(tmp_path: Path) -> None:
    model, normal = kit.make_model(tmp_path / "model"), tmp_path / "normal"
    normal.mkdir()
    for i in range(4):
        header = {
            "Manufacturer": "Acme" if i else "",
            "ManufacturerModelName": "X1",
            "Modality": "MR",
            "StudyInstanceUID": f"1.2.{i // 2}",
            "SeriesInstanceUID": f"1.2.3.{i // 3}",
            "PatientName": "Doe^Jane",
            "InstitutionName": f"Clinic {i // 3} ",
        }
        pixels = np.random.default_rng(i).integers(0, 4096, (20, 30)).astype(np.uint16)
        (normal / f"{i}.dcm").write_bytes(dicomkit.dicom(pixels, **header))
    (normal / "z.png").write_bytes(kit.png(0))
    found = calibrate(model=model, normal=str(normal), max_fpr=0.5)
    body = Path(model, "calibrations", f"{found.id}.parquet").read_bytes()
    assert b"Doe" not in body
    assert b"Clinic" not in body
    assert b"1.2.3." not in body
    rows = pq.read_table(io.BytesIO(body)).to_pydict()
    assert rows["manufacturer"] == [None, "Acme", "Acme", "Acme", None]
    assert rows["model"] == ["X1"] * 4 + [None]
    assert rows["modality"] == ["MR"] * 4 + [None]
    assert rows["rows"][:4] == [20] * 4
    assert rows["group"] == [0, 0, 1, 1, 2]
    assert rows["series"] == [0, 0, 0, 1, 2]
    # Institutions where that is asked for.
    (tmp_path / "key").write_bytes(b"a key")
    names = ["Clinic 0"] * 3 + ["Clinic 1", None]
    for identifiers in (Identifiers("plain"), Identifiers("hashed", b"a key")):
        key = tmp_path / "key" if identifiers.key else None
        found = calibrate(
            model=model, normal=str(normal), max_fpr=0.5, identifiers=identifiers.mode, identifiers_key=key
        )
        table = read_held_out(f"{model}/calibrations/{found.id}.parquet", str(found.held_out_sha256))
        assert table["site"].to_pylist() == [identifiers.uid(name) for name in names]
        assert naming_of(table.schema) == identifiers.naming
        assert table.drop_columns(["site"]).to_pydict() == rows
    with pytest.raises(UsageError, match="needs a key"):
        calibrate(model=model, normal=str(normal), max_fpr=0.5, identifiers="hashed")


def test_a_calibration_is_kept_when_another_comes(tmp_path: Path) -> None:
    folder = kit.make_model(tmp_path / "model")
    # As an earlier version left it.
    shutil.rmtree(tmp_path / "model" / "calibrations")
    path = tmp_path / "model" / "calibration.json"
    older = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("n_groups", "held_out_sha256")}
    path.write_text(json.dumps(older))
    assert read_model(folder).held_out_file() is None
    model, detector = open_fitted(folder)
    frames = [HeldOut(np.full((1, kit.SIZE_PX, kit.SIZE_PX), i, np.uint16)) for i in range(3)]
    for rate in (0.5, 0.9, 0.5):
        write_calibration(folder, calibrate_on(detector, frames, model_id=model.model_id, source="", max_fpr=rate))
    kept = kept_calibrations(folder).calibrations
    assert sorted(one.target for one in kept) == [0.5, 0.5, 0.9]
    current = read_model(folder)
    assert (current.calibration.target, current.calibration.n_normal) == (0.5, 3)
    assert current.held_out_file() is not None
    assert len(list((tmp_path / "model" / "calibrations").iterdir())) == 5
    told = shown_text(show(folder=folder))
    assert f"{current.calibration.id} (current)" in told
    assert all(one.id in told for one in kept)


def test_a_damaged_calibration_is_told_of_by_name_beside_the_rest(tmp_path: Path) -> None:
    folder = kit.make_model(tmp_path / "model")
    (kept,) = kept_calibrations(folder).calibrations
    path = Path(folder, "calibration.json")
    whole = path.read_bytes()
    another = json.dumps(json.loads(whole) | {"model_id": "f" * 12}).encode()
    for body, words in ((whole[:40], "must hold a threshold and a scale"), (another, "holds for one model")):
        path.write_bytes(body)
        found = show(folder=folder)["model"]
        (told,) = found["damaged"]
        assert words in told
        assert f"retroscan calibrate {folder}" in told
        assert (found["calibration"], found["calibrations"]) == (None, [kept.id])
        lines = shown_text({"model": found}).splitlines()
        assert f"  DAMAGED      {told}" in lines
        assert f"  kept         {kept.id}" in lines
        assert "  calibration  none that is whole" in lines
    path.unlink()
    found = show(folder=folder)["model"]
    assert (found["calibration"], found["damaged"]) == (None, [])
    assert "  calibration  none" in shown_text({"model": found}).splitlines()


@pytest.mark.parametrize("field", ["threshold", "heatmap_high", "rate"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(tmp_path: Path, field: str, value: str) -> None:
    folder = Path(kit.make_model(tmp_path / "model"))
    path = folder / "calibration.json"
    path.write_text(re.sub(rf'("{field}": )[^,\n]+', rf"\g<1>{value}", path.read_text()))
    with pytest.raises(UsageError, match=r"calibration\.json must hold .*finite number"):
        read_model(str(folder))
