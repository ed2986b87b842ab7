"""Overlays as PNG and what becomes of every selected row: written, or refused and counted; nothing is lost."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import exportkit as kit
import numpy as np
import pydicom
import pytest
import scankit
from dicomkit import SECRETS, encode
from hiddenkit import hide
from PIL import Image
from s3server import S3Server
from typer.testing import CliRunner

from ad_jobs.archive.identifiers import BESIDE, HASHED
from ad_jobs.cli.app import app
from ad_jobs.errors import UsageError
from ad_jobs.export import export
from ad_jobs.exporting.overlay import OPACITY, blended
from cluster import storage


def made(folder: Path, **options: Any) -> str:
    """A run of three slices of two studies, a picture, and an object that failed."""
    objects = {f"s{n}.dcm": encode(kit.slice_of(n, study=f"{kit.ROOT}.{2 + n // 2}")) for n in range(3)}
    return kit.run_over(folder, {**objects, "p.png": scankit.png(1), "x.dcm": b"nothing"}, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made(tmp_path_factory.mktemp("pictures"))


def files(out: Path | str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(out).iterdir()}


def test_what_is_cold_shows_the_picture_and_what_is_hot_its_colour() -> None:
    picture = np.full((2, 3, 3), 100, np.uint8)
    heat = np.array([[0.0, 0.1, 0.15], [0.4, 0.65, 1.0]], np.float32)
    found = blended(picture, heat)
    assert (found[0] == 100).all()
    assert found[1, 2].tolist() == np.rint(100 * (1 - OPACITY) + np.array([252, 253, 191]) * OPACITY).tolist()
    with pytest.raises(ValueError, match="laid over the frame"):
        blended(picture, heat[:1])


def test_an_overlay_has_the_pictures_size_and_the_heat_where_it_is_bright(run: str, tmp_path: Path) -> None:
    told = export(run=run, out=str(tmp_path / "o"), format="png")
    assert (told["selected"], told["written"], told["files"], told["refused"]) == (4, 4, 4, {})
    shown = np.asarray(Image.open(tmp_path / "o" / "000000000001-00000.png")).astype(int)
    assert shown.shape == (kit.ROWS, kit.COLUMNS, 3)
    top, left, side = kit.SQUARE
    coloured = shown.max(axis=2) - shown.min(axis=2) > 40
    rows, columns = np.nonzero(coloured)
    assert (rows.min(), rows.max() + 1) == (top, top + side)
    assert (columns.min(), columns.max() + 1) == (left, left + side)


def test_every_selected_row_stands_in_the_index(run: str, tmp_path: Path) -> None:
    out = tmp_path / "all"
    told = export(run=run, out=str(out), format="png", all=True)
    assert (told["selected"], told["written"], told["refused"]) == (5, 4, {"not_scored": 1})
    rows = kit.index_of(out)
    assert len(rows) == 5
    assert {row["file"] for row in rows} - {""} == {name for name in files(out) if name.endswith(".png")}
    assert [row["refused"] for row in rows if not row["file"]] == ["not_scored"]
    record = json.loads((out / "export.json").read_text())
    assert record["finished"]
    assert {name: record[name] for name in ("selected", "written", "refused", "files")} == {
        name: told[name] for name in ("selected", "written", "refused", "files")
    }


def test_refused_rows_are_counted_by_reason(tmp_path: Path) -> None:
    run = made(tmp_path)
    archive = tmp_path / "archive"
    archive.joinpath("s0.dcm").write_bytes(encode(kit.slice_of(7)))
    archive.joinpath("s1.dcm").unlink()
    told = export(run=run, out=str(tmp_path / "o"), format="dicom-sc")
    refused = {"content_changed": 1, "not_dicom": 1, "not_found": 1}
    assert (told["selected"], told["written"], told["refused"]) == (4, 1, refused)
    done = CliRunner().invoke(app, ["export", run, "--format", "dicom-sc", "--out", str(tmp_path / "o")])
    assert done.exit_code == 1
    assert "1 row refused (content_changed): they are of objects that are not what was scanned" in done.stdout
    assert "3 of 4 rows could not be handed on" in done.stderr


def test_without_heatmaps_nothing_is_drawn_and_that_is_said(tmp_path: Path) -> None:
    run = made(tmp_path, heatmaps=False)
    told = export(run=run, out=str(tmp_path / "o"), format="png")
    assert (told["written"], told["refused"]) == (0, {"no_heatmap": 4})


def test_a_damaged_shard_is_counted(tmp_path: Path) -> None:
    run = made(tmp_path)
    (shard,) = Path(run, "heatmaps").iterdir()
    shard.write_bytes(bytes(shard.stat().st_size))
    assert export(run=run, out=str(tmp_path / "o"), format="png")["refused"] == {"damaged_heatmap": 4}


def test_the_same_command_writes_the_same_bytes_and_another_is_refused(run: str, tmp_path: Path) -> None:
    out, other = tmp_path / "o", tmp_path / "other"
    for form in ("png", "dicom-sc", "dicom-pm", "dicom-sr"):
        for folder in (out, other):
            export(run=run, out=str(folder / form), format=form)
        # As after an interruption.
        (out / form / "export.json").write_text((out / form / "export.json").read_text().replace("true", "false"))
        next(path for path in (out / form).iterdir() if path.suffix in (".png", ".dcm")).unlink()
        export(run=run, out=str(out / form), format=form)
        assert files(out / form) == files(other / form)
        with pytest.raises(UsageError, match="another export's"):
            export(run=run, out=str(out / form), format=form, top=1)


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_folder_of_something_else_is_left_alone(run: str, content: str | None, tmp_path: Path) -> None:
    name = "export.json" if content else "notes.txt"
    (tmp_path / name).write_text(content or "mine")
    with pytest.raises(UsageError, match="--out is a new folder"):
        export(run=run, out=str(tmp_path), format="png")
    assert files(tmp_path) == {name: (content or "mine").encode()}


def test_the_frames_of_a_study_that_a_decision_flagged(tmp_path: Path) -> None:
    run = made(tmp_path, flagged={"s1.dcm"})
    # Object 3 is s2.dcm, which the run did not flag: of its study, s0 is in another.
    decision = kit.decided(run, {(3, 0)}, level="study")
    told = export(run=run, out=str(tmp_path / "o"), format="png", decision=decision)
    assert told["decision_id"] == decision
    assert [row["object_id"] for row in kit.index_of(tmp_path / "o")] == ["3"]
    both = kit.decided(run, {(2, 0), (3, 0)}, level="study")
    export(run=run, out=str(tmp_path / "b"), format="png", decision=both)
    # The highest of a study without a flagged frame, and what is flagged in the other.
    assert {row["object_id"] for row in kit.index_of(tmp_path / "b")} == {"1", "2", "3"}
    every = export(run=run, out=str(tmp_path / "e"), format="png", decision=both, all=True)
    assert every["selected"] == 4


def test_nothing_of_a_patient_is_in_names_tables_or_logs(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    with pydicom.config.disable_value_validation():
        odd = kit.slice_of(1, PatientID="MRN-778899" * 9, PatientBirthDate="Jane, 19700102", PatientSex="Secret story")
        objects = {"a.dcm": encode(odd), "b.dcm": encode(kit.slice_of(2))}
    run = kit.run_over(tmp_path, objects)
    recwarn.clear()
    told: list[str] = []
    for form in ("png", "dicom-sc", "dicom-pm", "dicom-sr", "csv", "xlsx"):
        out = tmp_path / f"o.{form}"
        done = CliRunner().invoke(app, ["export", run, "--format", form, "--out", str(out), "--json"])
        assert done.exit_code == 0, done.output
        told += [done.output, *(f.name for f in tmp_path.rglob("*"))]
        told += [f.read_text() for f in tmp_path.rglob("*.json")] + [f.read_text() for f in tmp_path.rglob("*.csv")]
    printed = capfd.readouterr()
    everything = "\n".join([*told, printed.out, printed.err, caplog.text, *(str(one.message) for one in recwarn)])
    assert not [secret for secret in SECRETS.values() if secret in everything]


def test_a_run_that_hides_its_objects_is_handed_on_by_who_has_its_manifest(tmp_path: Path) -> None:
    run = made(tmp_path)
    hide(run, str(tmp_path / "archive"))
    assert export(run=run, out=str(tmp_path / "o"), format="dicom-sr")["written"] == 3
    assert {row["uri"][:5] for row in kit.index_of(tmp_path / "o")} == {HASHED}
    assert {ds.StudyInstanceUID for ds in kit.written(tmp_path / "o")} == {f"{kit.ROOT}.2", f"{kit.ROOT}.3"}
    shutil.move(run + BESIDE, tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="--manifest"):
        export(run=run, out=str(tmp_path / "p"), format="png")
    assert not (tmp_path / "p").exists()
    found = export(run=run, out=str(tmp_path / "p"), format="png", manifest=f"manifest:{tmp_path / 'elsewhere'}")
    assert found["written"] == 4


@pytest.mark.s3
def test_a_run_on_s3_is_handed_on_to_s3(s3: S3Server, tmp_path: Path) -> None:
    run = made(tmp_path)
    for path in Path(run).rglob("*"):
        if path.is_file():
            storage.write_bytes(f"s3://{s3.bucket}/run-x/{path.relative_to(run)}", path.read_bytes())
    out = f"s3://{s3.bucket}/exports/x"
    for _ in range(2):
        assert export(run=f"s3://{s3.bucket}/run-x", out=out, format="png")["written"] == 4
    export(run=run, out=str(tmp_path / "o"), format="png")
    for name, data in files(tmp_path / "o").items():
        assert storage.read_bytes(f"{out}/{name}") == data or name == "index.csv"
    assert Image.open(io.BytesIO(storage.read_bytes(f"{out}/000000000001-00000.png"))).size == (kit.COLUMNS, kit.ROWS)
    with pytest.raises(UsageError, match="another export's"):
        export(run=run, out=out, format="png", top=1)
