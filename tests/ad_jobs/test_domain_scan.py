"""A scan skips what no fit saw, model by model, and says why; `--accept` scores it all the same."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import scankit as kit

from ad_jobs.archive.fetching import Prepared
from ad_jobs.cli.show import balance_text
from ad_jobs.images.domain import Domain, DomainFile
from ad_jobs.report import report
from ad_jobs.results.read import read_run, read_scores
from ad_jobs.scan import scan
from ad_jobs.scanning.batch_score import Score
from ad_jobs.score import score
from ad_jobs.scoring.model_domain import DOMAIN
from ad_jobs.show import show
from ad_jobs.verify import verify
from ad_jobs.verifying import sample
from cluster.session import session

pytestmark = pytest.mark.ray

ARCHIVE = {
    **{f"mr{number}.dcm": kit.dicom(number) for number in range(3)},
    "ct.dcm": kit.dicom_of(3, Modality="CT"),
    "cine.dcm": kit.dicom(4, kit.FRAMES),
    "grey.png": kit.png(5),
    "colour.jpg": kit.jpeg(6),
    "report.dcm": kit.structured_report(7),
    "cut.dcm": kit.dicom(8)[:-700],
}
DOMAINS = {"brains": Domain(modality=("MR",), kind=("dicom",)), "pictures": Domain(kind=("picture",), colour=False)}
OUTSIDE = {
    "brains": {
        "ct.dcm": "modality CT, and the model takes MR",
        "cine.dcm": "modality OT, and the model takes MR",
        "grey.png": "kind picture, and the model takes dicom",
        "colour.jpg": "kind picture, and the model takes dicom",
    },
    "pictures": {
        **{f"{name}.dcm": "kind dicom, and the model takes picture" for name in ("mr0", "mr1", "mr2", "ct", "cine")},
        "colour.jpg": "colour, and the model takes grey pictures",
    },
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the archive, and a model of each domain."""
    folder = tmp_path_factory.mktemp("domain")
    kit.write_archive(folder / "archive", ARCHIVE)
    for seed, (name, accepts) in enumerate(DOMAINS.items()):
        kit.make_model(folder / name, seed=seed)
        (folder / name / DOMAIN).write_text(DomainFile(accepts=accepts).model_dump_json())
    return folder


@pytest.fixture(scope="module")
def run(home: Path) -> Iterator[str]:
    """Of both models."""
    out = str(home / "run")
    with session(num_cpus=2):
        scan(str(home / "archive"), [str(home / name) for name in DOMAINS], out, heatmaps="all")
        yield out


def by_name(rows: pd.DataFrame, model_id: str) -> pd.DataFrame:
    of_model = rows[rows["model_id"] == model_id]
    return of_model.assign(name=of_model["uri"].str.rpartition("/")[2]).set_index("name")


def test_every_model_skips_what_its_fit_saw_none_of(run: str) -> None:
    rows = read_scores(run)
    for model, outside in zip(read_run(run).models, OUTSIDE.values(), strict=True):
        of_model = by_name(rows, model.model_id)
        skipped = of_model[of_model["error_code"] == "out_of_domain"]
        assert skipped["error_detail"].to_dict() == outside
        assert skipped["status"].unique().tolist() == ["skipped"]
        assert skipped[["score", "flagged", "heatmap", "score_ms"]].isna().all(axis=None)
        # What is no image, or broken, is so under every model.
        assert of_model.loc["report.dcm", "error_code"] == "not_an_image"
        assert of_model.loc["cut.dcm", "error_code"] == "truncated"
        scored = of_model[of_model["status"] == "scored"]
        assert set(scored.index) == set(ARCHIVE) - set(outside) - {"report.dcm", "cut.dcm"}
        assert scored["heatmap"].notna().all()


def test_objects_balance_and_the_terminal_says_what_to_do(run: str) -> None:
    record = read_run(run)
    counts = record.counts
    # An object that one model takes and another does not counts as skipped: the worse of its outcomes.
    assert counts.by_code == {"out_of_domain": 7, "not_an_image": 1, "truncated": 1}
    assert (counts.scored, counts.failed, counts.skipped) == (0, 1, 8)
    told = balance_text(record.model_dump(mode="json"), run)
    assert "out_of_domain 7" in told
    assert "--accept names each that is not to count" in told


def test_scores_are_those_of_a_model_that_takes_everything(run: str, home: Path, tmp_path: Path) -> None:
    everything = str(tmp_path / "everything")
    scan(str(home / "archive"), [str(home / name) for name in DOMAINS], everything, accept=["all"], heatmaps="all")
    widened, narrow = read_scores(everything), read_scores(run)
    assert not (widened["error_code"] == "out_of_domain").any()
    assert read_run(everything).run_id != read_run(run).run_id
    assert read_run(everything).config["accept"] == ["all"]
    both = narrow[narrow["status"] == "scored"].merge(widened, on=["object_id", "frame", "model_id"])
    assert len(both) == 4
    assert (both["score_x"] - both["score_y"]).abs().max() < 1e-6
    assert verify(everything, sample=100).differences == []


def test_accept_names_a_value(home: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "ct")
    record = scan(str(home / "archive"), [str(home / "brains")], out, accept=["modality=CT"])
    assert record.counts.by_code["out_of_domain"] == 3
    assert by_name(read_scores(out), record.models[0].model_id).loc["ct.dcm", "status"] == "scored"
    assert verify(out, sample=100).differences == []


def test_verify_scores_again_what_the_run_did_and_nothing_else(run: str, home: Path) -> None:
    found = verify(run, sample=100)
    assert found.differences == []
    assert found.sampled == len(ARCHIVE)
    assert found.scored == 4
    path = home / "brains" / DOMAIN
    kept = path.read_text()
    path.write_text('{"accepts": {"modality": ["CT"]}}')
    try:
        assert any("model_id is" in text for text in verify(run, sample=100).differences)
    finally:
        path.write_text(kept)


def test_verify_compares_the_reasons(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sample.prepare_each

    def for_another_reason(*arguments: Any) -> list[Prepared]:
        return [one._replace(refused=tuple(why and "because" for why in one.refused)) for one in real(*arguments)]

    monkeypatch.setattr(sample, "prepare_each", for_another_reason)
    told = verify(run, sample=100).differences
    assert any("out of the domain by 'because'; the table has 'modality CT" in text for text in told)


def test_one_model_of_several_fails_on_what_the_other_does_not_take(home: Path, tmp_path: Path) -> None:
    cut = kit.jpeg(3)
    source = kit.write_archive(tmp_path / "cut", {"cut.jpg": cut[: len(cut) // 2]})
    out = str(tmp_path / "run")
    record = scan(source, [str(home / name) for name in DOMAINS], out)
    codes = [by_name(read_scores(out), model.model_id).loc["cut.jpg", "error_code"] for model in record.models]
    assert codes == ["out_of_domain", "truncated"]
    assert (record.counts.failed, record.counts.skipped) == (1, 0)
    assert verify(out, sample=10).differences == []


def test_the_report_says_by_which_fields(run: str) -> None:
    page = Path(str(report(run))).read_text()
    assert "by kind 7, modality 2, colour 1" in page
    assert "A guess" not in page, "of twelve images six may be flagged"


def test_score_and_batches_say_the_same(run: str, home: Path) -> None:
    model = read_run(run).models[0]
    wanted = by_name(read_scores(run), model.model_id)
    names = sorted(ARCHIVE)
    images = [str(home / "archive" / name) for name in names]
    shown = score(model.uri, images)
    columns = ["status", "error_code", "error_detail"]
    for row in shown:
        expected = wanted.loc[[Path(row["image"]).name]].iloc[0]
        assert [row[name] for name in columns] == [
            None if pd.isna(expected[name]) else expected[name] for name in columns
        ]
    codes = Score(model.uri)(pa.table({"uri": images}))["error_code"].to_pylist()
    assert codes == [row["error_code"] for row in shown]
    widened = Score(model.uri, accept=["modality=CT"])(pa.table({"uri": images}))["error_code"].to_pylist()
    assert codes.count("out_of_domain") - widened.count("out_of_domain") == 1
    (one,) = score(model.uri, [str(home / "archive" / "ct.dcm")], accept=["modality"])
    assert one["status"] == "scored"


def test_show_says_what_a_model_takes_and_what_a_run_is(run: str, home: Path, command: Callable[..., str]) -> None:
    model = read_run(run).models[0]
    assert show(model.uri)["model"]["domain"]["accepts"]["modality"] == ["MR"]
    told = command("show", model.uri)
    assert f"model {model.model_id} (autoencoder)" in told
    assert "takes        kind [dicom], modality [MR]" in told
    assert f"run {read_run(run).run_id}" in command("show", run)
    assert json.loads(command("show", run, "--json"))["run"]["counts"]["skipped"] == 8
    assert "a folder with detector.json" in command("show", str(home / "archive"), code=2)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The command line in this process: what it prints, its exit code checked."""
    from ad_jobs.cli.app import main

    def call(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        told = capsys.readouterr()
        assert ended.value.code == code, told.err
        return told.out if code == 0 else told.err

    return call
