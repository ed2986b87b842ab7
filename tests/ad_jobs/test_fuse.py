"""`retroscan fuse`: members that score together, by the images that all of them held out; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cutkit import cuts, once
from fusekit import RANDOM, few_defects, fitted, normals, pair
from s3server import S3Server
from scankit import png
from typer.testing import CliRunner

from ad_jobs.cli.app import app
from ad_jobs.errors import UsageError
from ad_jobs.fitting import fusion
from ad_jobs.fuse import fuse
from ad_jobs.images.domain import Domain
from ad_jobs.score import score
from ad_jobs.scoring.model_store import open_model, read_fitted, read_model, read_record
from ad_jobs.show import show


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    """Of the judge's many synthetic defects these tests need few."""
    with few_defects():
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with normal pictures, two members, and what they are fused to."""
    folder = tmp_path_factory.mktemp("fuse")
    members = pair(folder, normals(str(folder / "normal")))
    fuse(model=members, out=str(folder / "fused"))
    return folder


def members(home: Path) -> list[str]:
    return [str(home / "linear"), str(home / "padim")]


def test_the_fused_model_says_who_joined_and_is_calibrated_by_what_all_held_out(home: Path) -> None:
    model = open_model(str(home / "fused"))
    told = model.record["fused"]
    assert [row["uri"] for row in told["members"]] == members(home)
    assert [row["model_id"] for row in told["members"]] == [read_fitted(place).model_id for place in members(home)]
    assert sum(row["weight"] for row in told["members"]) == pytest.approx(1)
    assert all((row["why"] is None) == bool(row["weight"]) for row in told["members"])
    assert set(told["members"][0]["auroc"]) == set(told["kinds"])
    assert told["found"] >= max(row["found"] for row in told["members"])
    kept = [row["model_id"] for row in told["members"] if row["weight"]]
    assert [one["model_id"] for one in model.record["source"]["members"]] == kept
    assert [one.model_id for one in model.detector.config.members] == kept
    # With the network's licence, which no detector that was read from a file knows any more.
    networks = {
        row["model_id"]: read_fitted(place).record["source"]
        for row, place in zip(told["members"], members(home), strict=False)
    }
    assert [one["source"] for one in model.record["source"]["members"]] == [networks[one] for one in kept]
    first = read_fitted(members(home)[0]).record["data"]
    assert model.calibration.n_normal == told["normals"] == first["n_held_out"] == 6
    assert (model.calibration.rule, model.calibration.target) == ("max_fpr", 0.01)
    assert model.score_cpu_ms


def test_its_scores_are_those_of_its_members(home: Path, tmp_path: Path) -> None:
    images = [tmp_path / f"{number}.png" for number in range(40, 43)]
    for number, path in enumerate(images, 40):
        path.write_bytes(png(number))
    fused = open_model(str(home / "fused"))
    kept = [row["uri"] for row in fused.record["fused"]["members"] if row["weight"]]
    by_score = (fused.detector.weight / fused.detector.score_spread).tolist()
    expected = sum(
        factor * np.array([row["score"] for row in score(model=place, images=images)])
        for factor, place in zip(by_score, kept, strict=True)
    )
    found = [row["score"] for row in score(model=fused.uri, images=images)]
    # Members of a smaller input get it from the larger one, in steps of stored pixels.
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_the_same_command_again_finds_it_done(home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (home / "fused").rglob("*")}
    fuse(model=members(home)[::-1], out=str(home / "fused"))
    assert {path: path.stat().st_mtime_ns for path in (home / "fused").rglob("*")} == before
    with pytest.raises(UsageError, match="One folder holds one model"):
        fuse(model=members(home), out=str(home / "fused"), normal=normals(str(home / "other"), 4))
    with pytest.raises(UsageError, match="One folder holds one model"):
        fuse(model=members(home), out=str(home / "fused"), identifiers="plain")


def test_a_fusion_that_ends_at_any_moment_comes_out_the_same(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ad_jobs.fuse.fused", once(fusion.fused))
    out = str(tmp_path / "fused")
    for cut in cuts(lambda: fuse(model=members(home), out=out)):
        assert cut < 20
        assert read_record(out) is None
    whole, undisturbed = open_model(out), open_model(str(home / "fused"))
    assert (whole.model_id, whole.calibration.id) == (undisturbed.model_id, undisturbed.calibration.id)


def test_other_images_may_be_named_that_no_member_was_fitted_on(home: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for number in range(60, 67):
        (others / f"{number}.png").write_bytes(png(number))
    record = fuse(model=members(home), out=str(tmp_path / "fused"), normal=str(others), identifiers="plain")
    assert record["fused"]["normals"] == 7
    held_out = read_model(str(tmp_path / "fused")).held_out_file()
    assert held_out is not None
    assert "site" in pq.read_schema(pa.BufferReader(held_out)).names
    with pytest.raises(UsageError, match="--normal is of images that no member was fitted on"):
        fuse(model=members(home), out=str(tmp_path / "again"), normal=str(home / "normal"))


def test_what_is_left_out_costs_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the larger member in colour the input is the smaller one's, in grey; one that is left alone says so."""
    monkeypatch.setattr(fusion, "chosen", lambda judged: (1.0, *[0.0] * (judged.normal.shape[1] - 1)))
    record = fuse(model=members(home), out=str(tmp_path / "alone"))
    model, member = open_model(str(tmp_path / "alone")), open_model(members(home)[0])
    assert (model.policy, model.detector.spec) == (member.policy, member.detector.spec)
    assert [one["kind"] for one in record["source"]["members"]] == ["linear"]
    assert [row["weight"] for row in record["fused"]["members"]] == [1.0, 0.0]
    assert record["fused"]["members"][1]["why"].startswith("as those who joined find ")
    # The member's own scores, in another scale.
    images = [str(path) for path in sorted((home / "normal").iterdir())[:4]]
    own, found = (np.array([row["score"] for row in score(model=one.uri, images=images)]) for one in (member, model))
    np.testing.assert_allclose(found, own / float(model.detector.score_spread), rtol=1e-5)


def test_what_is_shown(home: Path) -> None:
    lines = CliRunner().invoke(app, ["show", str(home / "fused")]).output.splitlines()
    assert sum("  member  " in line for line in lines) == 2
    assert any(line.startswith("  together     finds 0.") for line in lines)
    result = CliRunner().invoke(app, ["fuse", *members(home), "--out", str(home / "fused")])
    assert result.output.startswith(f"model {show(folder=str(home / 'fused'))['model']['model_id']} (fused) in ")
    as_json = CliRunner().invoke(app, ["fuse", *members(home), "--out", str(home / "fused"), "--json"])
    assert json.loads(as_json.stdout[as_json.stdout.index("{") :])["kind"] == "fused"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"resize": "pad"}, "the same resize"),
        ({"window": (0.0, 200.0)}, "the same window"),
        ({"decode": "reduced"}, "the same decode"),
        ({"seed": 1}, "--normal SOURCE"),
        ({"domain": Domain(kind=("dicom",))}, "take the same objects"),
    ],
)
def test_members_that_do_not_belong_together_are_refused(
    home: Path, tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    other = fitted(str(tmp_path / "other"), str(home / "normal"), **changed)
    first = fitted(str(tmp_path / "picture"), str(home / "normal"), size_px=48, domain=Domain(kind=("picture",)))
    with pytest.raises(UsageError, match=words):
        fuse(model=[first, other], out=str(tmp_path / "fused"))
    assert not (tmp_path / "fused").exists()


def test_a_fused_member_and_the_same_model_twice_are_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Name its members instead"):
        fuse(model=[str(home / "fused"), str(home / "linear")], out=str(tmp_path / "f"))
    with pytest.raises(UsageError, match="named once"):
        fuse(model=[str(home / "linear")] * 2, out=str(tmp_path / "f"))
    copy = fitted(str(tmp_path / "copy"), str(home / "normal"))
    with pytest.raises(UsageError, match="Members are different models"):
        fuse(model=[str(home / "linear"), copy], out=str(tmp_path / "f"))
    with pytest.raises(UsageError, match="--out"):
        fuse(model=members(home), out=str(home / "linear"))


def test_images_that_are_gone_or_changed_are_told(tmp_path: Path) -> None:
    source = normals(str(tmp_path / "normal"))
    made = [fitted(str(tmp_path / "one"), source), fitted(str(tmp_path / "two"), source, "padim", 32, options=RANDOM)]
    for path in Path(source).iterdir():
        path.write_bytes(png(int(path.stem) + 100))
    with pytest.raises(UsageError, match=r"6 objects of 6 changed or is gone.*--normal SOURCE"):
        fuse(model=made, out=str(tmp_path / "f"))
    for path in Path(source).iterdir():
        path.unlink()
    with pytest.raises(UsageError, match="lie where they were"):
        fuse(model=made, out=str(tmp_path / "f"))


def test_a_fit_of_it_is_refused_with_the_verb_that_makes_it(home: Path, tmp_path: Path) -> None:
    asked = ["fit", "--detector", "fused", "--normal", str(home / "normal"), "--out", str(tmp_path / "m")]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2
    assert "retroscan fuse MODEL MODEL" in result.output


@pytest.mark.s3
def test_images_and_models_may_lie_on_s3(s3: S3Server) -> None:
    root = f"s3://{s3.bucket}/fuse"
    source = normals(f"{root}/normal", 12)
    made = [fitted(f"{root}/{size_px}", source, size_px=size_px) for size_px in (32, 48)]
    record = fuse(model=made, out=f"{root}/fused")
    assert record["fused"]["normal"] == source
    assert open_model(f"{root}/fused").calibration.n_normal == 3
