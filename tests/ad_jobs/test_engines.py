"""Which engine scored stands in a run's record, and a run of one is verified and continued by the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import scankit as kit
import torch

from ad_jobs.results.read import read_scores
from ad_jobs.results.run import read_record
from ad_jobs.scan import scan
from ad_jobs.scanning import run_state
from ad_jobs.scanning.intent import resolve
from ad_jobs.score import score
from ad_jobs.scoring import scorer
from ad_jobs.scoring.devices import Cpu
from ad_jobs.scoring.tolerances import same_scores
from ad_jobs.specs import ScanSpec
from ad_jobs.verify import verify
from cluster.session import session

ENGINE, TORCH = f"onnxruntime {onnxruntime.__version__}", f"torch {torch.__version__}"
# Of a start before this one, on machines of another kind.
BEFORE = "torch 2.9.0"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an archive, and runs of a model that the engine takes, of one it does not, and one continued."""
    folder = tmp_path_factory.mktemp("engines")
    source = kit.write_archive(folder / "archive", kit.good_objects(60))
    taken = kit.make_model(folder / "taken", kind="mkd")
    left = kit.make_model(folder / "left", kind="fyd")
    with session(num_cpus=2):
        scan(source, [taken], str(folder / "run"))
        scan(source, [taken, left], str(folder / "both"))
        continued = ScanSpec(source=source, model=[taken], out=str(folder / "continued"))
        intent = resolve(continued)
        run_state.begin(intent)
        assert run_state.note_engines(continued.out, frozenset(), [BEFORE]) == {BEFORE}
        scan(continued)
        yield folder


@pytest.mark.ray
def test_the_record_says_what_scored(home: Path) -> None:
    assert read_record(str(home / "run")).engines == [ENGINE]
    assert read_record(str(home / "both")).engines == [ENGINE, TORCH]
    assert read_record(str(home / "run")).versions["onnxruntime"] == onnxruntime.__version__


@pytest.mark.ray
def test_what_an_earlier_start_was_scored_by_stays_in_it(home: Path) -> None:
    assert read_record(str(home / "continued")).engines == [ENGINE, BEFORE]


@pytest.mark.ray
def test_a_run_of_the_engine_holds_under_torch_and_under_the_engine(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = sorted(map(str, (home / "archive" / "good").iterdir()))[:5]
    by_engine = np.array([row["score"] for row in score(str(home / "taken"), images)])
    assert verify(str(home / "run")).differences == []
    monkeypatch.setattr(scorer, "best_device", Cpu)
    found = verify(str(home / "run"))
    assert (found.differences, found.scored) == ([], 60)
    by_torch = np.array([row["score"] for row in score(str(home / "taken"), images)])
    assert same_scores(by_engine, by_torch, float(by_torch.max())).all()


@pytest.mark.ray
def test_the_batch_that_was_measured_changed_no_score(home: Path) -> None:
    one, other = (read_scores(str(home / run)).set_index("uri")["score"] for run in ("run", "continued"))
    np.testing.assert_allclose(one.sort_index(), other.sort_index(), rtol=1e-5)
