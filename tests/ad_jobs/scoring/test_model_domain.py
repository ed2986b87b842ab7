"""domain.json beside a model: bound into its id, edited by hand, and no part of its calibration."""

import json
from pathlib import Path
from typing import Any

import pytest
import scankit as kit

from ad_jobs.calibrate import calibrate
from ad_jobs.errors import JobError, UsageError
from ad_jobs.images.domain import Domain, DomainFile
from ad_jobs.scoring.model_domain import DOMAIN
from ad_jobs.scoring.model_store import open_model, publish, read_model
from models import record
from models.record import DETECTOR

ONLY_MR = DomainFile(accepts=Domain(modality=("MR",)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as earlier versions wrote it: without a domain."""
    folder = tmp_path_factory.mktemp("plain")
    kit.make_model(folder)
    return folder


@pytest.fixture
def model(plain: Path, tmp_path: Path) -> str:
    """The same, published with a domain, and calibrated on pictures that an archive has."""
    opened = open_model(str(plain))
    uri = str(tmp_path / "model")
    publish(uri, opened.kind, opened.detector, opened.policy, {"seed": 0}, ONLY_MR)
    normal = {f"{number}.dcm": kit.dicom(number) for number in range(12)}
    calibrate(uri, kit.write_archive(tmp_path / "normal", normal), max_fpr=0.5)
    return uri


def edit(model: str, text: str) -> None:
    Path(model, DOMAIN).write_text(text)


def test_a_model_without_one_takes_everything_and_keeps_its_id(plain: Path) -> None:
    found = read_model(str(plain))
    assert found.domain == DomainFile()
    assert found.model_id == json.loads((plain / DETECTOR).read_text())["model_id"]


def test_the_domain_is_bound_into_the_id(plain: Path, model: str) -> None:
    found = read_model(model)
    assert found.domain == ONLY_MR
    assert found.model_id == json.loads(Path(model, DETECTOR).read_text())["model_id"] == found.calibration.model_id
    assert found.model_id != read_model(str(plain)).model_id, "of the same weights and options"


def test_edited_it_is_another_model_under_the_same_calibration(model: str) -> None:
    before = read_model(model)
    edit(model, '{"accepts": {"modality": ["MR", "CT"]}}')
    after = read_model(model)
    assert after.domain.accepts.modality == ("MR", "CT")
    assert after.model_id != before.model_id
    assert after.calibration == before.calibration
    edit(model, ONLY_MR.model_dump_json(indent=7))
    assert read_model(model).model_id == before.model_id, "layout is no content"
    # A calibration under an edited domain is the model's under any other.
    edit(model, '{"accepts": {"modality": ["MR", "CT"]}}')
    calibrate(model, str(Path(model).parent / "normal"), max_fpr=0.25)
    edit(model, ONLY_MR.model_dump_json())
    assert read_model(model).calibration.target == 0.25
    edit(model, '{"accepts": {}}')
    assert read_model(model).domain.accepts == Domain()
    assert read_model(model).model_id != before.model_id


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON"),
        ('{"accepts": {"modalty": ["MR"]}}', "modalty"),
        ('{"accepts": {"side_px": [9, 3]}}', "side_px must be"),
    ],
)
def test_one_that_is_none_is_refused(model: str, text: str, words: str) -> None:
    edit(model, text)
    with pytest.raises(UsageError, match=words) as refused:
        read_model(model)
    assert "spacing_mm" in refused.value.remedy
    assert f"{model}/{DOMAIN}" in str(refused.value)


def test_one_that_is_gone_is_refused(model: str) -> None:
    Path(model, DOMAIN).unlink()
    with pytest.raises(UsageError, match="without it"):
        read_model(model)


def test_a_calibration_is_of_what_a_scan_scores(model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mixed = {f"{n}.dcm": kit.dicom(n) for n in range(4)} | {
        f"ct{n}.dcm": kit.dicom_of(n, Modality="CT") for n in (4, 5)
    }
    source = kit.write_archive(tmp_path / "mixed", mixed)
    assert calibrate(model, source, max_fpr=0.5).n_normal == 4
    assert "modality CT, and the model takes MR" in caplog.text
    assert calibrate(model, source, max_fpr=0.5, accept=["modality=CT"]).n_normal == 6
    others = kit.write_archive(tmp_path / "others", {"ct.dcm": kit.dicom_of(4, Modality="CT")})
    with pytest.raises(JobError):
        calibrate(model, others, max_fpr=0.5)


def test_the_id_is_reckoned_once(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reckoned: list[str] = []
    real = record.model_id

    def counted(deciding: dict[str, Any]) -> str:
        reckoned.append(real(deciding))
        return reckoned[-1]

    monkeypatch.setattr(record, "model_id", counted)
    found = read_model(model)
    # Of the record as it lies there, too, which a reader checks.
    before = len(reckoned)
    assert {found.model_id for _ in range(3)} == {reckoned[-1]}
    assert len(reckoned) == before
