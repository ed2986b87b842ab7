"""docs/python.md, run as it stands: its code in order, its outputs compared, and what it says of the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scankit as kit
import walkkit as walk

from cluster.session import session

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The page's names after all of its code, which ran in a folder of its own, in one session for all of its verbs."""
    folder = tmp_path_factory.mktemp("walk")
    images = {f"slice-{number:03d}.png": kit.png(number) for number in range(13)}
    dicom = {"mr-0.dcm": kit.dicom(50), "mr-1.dcm": kit.dicom(51), "cine.dcm": kit.dicom(52, kit.FRAMES)}
    bad = {"notes.png": kit.bad_objects()["bad/text.png"][0], "report.dcm": kit.structured_report(1)}
    kit.write_archive(folder / "archive", images | dicom | bad)
    normal = {f"{number}.png": kit.png(number) for number in range(100, 118)}
    # Without which the model would skip them in the archive.
    of_dicom = {"mr.dcm": kit.dicom(118), "capture.dcm": kit.dicom_of(119, Modality="OT")}
    kit.write_archive(folder / "normal", normal | of_dicom)
    kit.write_archive(folder / "other_normal", {f"{number}.png": kit.png(number) for number in range(200, 210)})
    with pytest.MonkeyPatch.context() as patch, session(num_cpus=2):
        patch.chdir(folder)
        yield walk.run(PAGE, {})


def test_the_page_shows_what_its_code_gives(names: dict[str, Any]) -> None:
    assert sum(step.shown is not None for step in walk.steps(PAGE)) >= 11
    assert names["model"]["kind"] == "padim"


def test_a_pipeline_of_ones_own_gives_the_numbers_of_the_scan(names: dict[str, Any]) -> None:
    own = names["table"].set_index(["path", "frame"]).sort_index()
    scanned = names["run"].scores().set_index(["uri", "frame"]).sort_index()
    assert own.index.tolist() == scanned.index.tolist()
    np.testing.assert_allclose(own.score.astype(float), scanned.score.astype(float), rtol=1e-5)


def test_heatmaps_are_on_one_scale(names: dict[str, Any]) -> None:
    assert 0 <= names["heatmap"].values.min() <= names["heatmap"].values.max() <= 1


def test_an_output_that_is_not_shown_so_is_told(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint('a')\n1 + 1\n```\n\n```text\na\n3\n```\n")
    with pytest.raises(AssertionError, match="line 2, shows"):
        walk.run(page, {})
    page.write_text(page.read_text().replace("3", "2"))
    assert walk.run(page, {}).keys() == {"__builtins__"}
