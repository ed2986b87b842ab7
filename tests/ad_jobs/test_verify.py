"""`verify` passes on what is whole, and names what was changed: image, weights, table or heatmap."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import scankit as kit
from numpy.typing import NDArray

from ad_jobs.errors import JobError, UsageError
from ad_jobs.results.seal import sealed
from ad_jobs.scan import scan
from ad_jobs.scoring.scorer import FrameScore, Scorer
from ad_jobs.verify import verify

pytestmark = pytest.mark.ray

OBJECTS = kit.good_objects(16) | {name: data for name, (data, _) in kit.bad_objects().items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model, archive and run."""
    home = tmp_path_factory.mktemp("verify")
    source = kit.write_archive(home / "archive", OBJECTS)
    scan(source, [kit.make_model(home / "model")], str(home / "run"), batch_size=8, heatmaps="all")
    return home


@pytest.fixture
def home(finished: Path) -> Iterator[Path]:
    """The same, and after the test it is whole again."""
    with kit.kept_whole(finished) as whole:
        yield whole


def differences(home: Path) -> list[str]:
    """What verify finds, every object looked at."""
    found = verify(str(home / "run"), sample=1000)
    assert found.ok == (not found.differences)
    if found.differences:
        with pytest.raises(JobError) as failed:
            found.raise_if_different()
        assert failed.value.exit_code == 1
        assert found.differences[0] in str(failed.value)
    return found.differences


def test_a_run_that_nobody_touched_passes(home: Path) -> None:
    found = verify(str(home / "run"), sample=1000)
    assert found.differences == []
    assert found.sampled == len(OBJECTS)
    assert found.parts > 1


def test_a_sample_is_seeded_and_has_failed_objects_in_it(home: Path) -> None:
    assert verify(str(home / "run"), sample=5).sampled == 5
    # Among five objects is one without a score: a repaired one is found.
    for name, (_, code) in kit.bad_objects().items():
        if code != "not_an_image":
            (home / "archive" / name).write_bytes(kit.png(7))
    (home / "archive" / "bad/report.dcm").write_bytes(kit.png(7))
    assert verify(str(home / "run"), sample=5).differences


def test_one_byte_of_an_image(home: Path) -> None:
    kit.flip_byte(home / "archive/good/0006.dcm", -100)
    [only] = differences(home)
    assert "good/0006.dcm" in only
    assert "sha256" in only


def test_an_image_that_is_gone(home: Path) -> None:
    (home / "archive/good/0001.png").unlink()
    [only] = differences(home)
    assert "good/0001.png" in only


def test_one_byte_of_the_weights(home: Path) -> None:
    kit.flip_byte(home / "model/weights.safetensors", -5)
    [only] = differences(home)
    assert "weights" in only


def test_another_threshold(home: Path) -> None:
    # A model may be given another; the run has a copy of the one that it was judged by.
    path = home / "model/calibration.json"
    path.write_text(path.read_text().replace('"source": "test"', '"source": "another"'))
    assert differences(home) == []
    path.unlink()
    assert differences(home) == []
    (copy,) = (home / "run/calibrations").glob("*.json")
    copy.write_text(copy.read_text().replace('"source": "test"', '"source": "another"'))
    assert any("calibration of the run" in text for text in differences(home))


@pytest.mark.parametrize("position", [100, -100])
def test_one_byte_of_the_table(home: Path, position: int) -> None:
    part = next(kit.parts(home / "run"))
    kit.flip_byte(part, position)
    [only] = differences(home)
    assert part.name in only


def test_a_part_too_many_and_one_too_few(home: Path) -> None:
    first, second, *_ = kit.parts(home / "run")
    shutil.copy(first, first.with_name("again.parquet"))
    second.unlink()
    found = differences(home)
    assert len(found) == 2
    assert any(second.name in text for text in found)
    assert any("again.parquet" in text for text in found)
    assert not verify(str(home / "run"), sample=0).rows_checked


def test_a_manifest_that_is_gone_is_a_difference(home: Path) -> None:
    shutil.rmtree(home / "run/manifest")
    [only] = differences(home)
    assert only.startswith("manifest: A run is checked by its manifest.")


def test_one_byte_of_a_heatmap_shard(home: Path) -> None:
    shard = next((home / "run/heatmaps").iterdir())
    kit.flip_byte(shard, 700)
    assert any(shard.name in text for text in differences(home))


def test_an_unfinished_run_is_refused(home: Path) -> None:
    (home / "run/run.json").unlink()
    with pytest.raises(UsageError, match="finished"):
        verify(str(home / "run"))


@pytest.mark.parametrize(("amp", "factor", "same"), [(False, 1.005, False), (True, 1.005, True), (True, 1.05, False)])
def test_a_run_in_reduced_precision_has_a_wider_tolerance(
    home: Path, monkeypatch: pytest.MonkeyPatch, amp: bool, factor: float, same: bool
) -> None:
    record = json.loads((home / "run/run.json").read_text())
    record["config"]["amp"] = amp
    (home / "run/run.json").write_text(json.dumps(sealed(record, None)))

    class Off(Scorer):
        def score(self, pixels: Iterable[NDArray[np.uint16]]) -> Iterator[FrameScore]:
            return (one._replace(score=factor * one.score) for one in super().score(pixels))

    monkeypatch.setattr("ad_jobs.verifying.sample.Scorer", Off)
    found = verify(str(home / "run"), sample=20)
    # The run's id says what it was made with.
    scores = [text for text in found.differences if "run_id" not in text]
    assert (scores == []) == same, scores
    assert found.tolerance == (0.02 if amp else 1e-5)
