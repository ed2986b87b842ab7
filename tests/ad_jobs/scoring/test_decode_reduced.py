"""A model of `decode: reduced` scores what it was fitted on, and is another one than a model of whole frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reducedkit as kit

from ad_jobs.score import score
from ad_jobs.scoring.model_store import open_model
from ad_jobs.scoring.scorer import Scorer

SIZE_PX = 16
# Four times the input's side, and not a multiple of it.
SIDE_PX = 4 * SIZE_PX + 3
NORMAL, OTHERS = range(20), range(30, 34)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of two models that were fitted alike but for how their images were decoded."""
    files = [kit.jpeg_2000(number, SIDE_PX) for number in NORMAL]
    return kit.fitted_pair(tmp_path_factory.mktemp("models"), files, SIZE_PX)


def test_how_frames_are_decoded_is_part_of_the_model(models: dict[str, str]) -> None:
    whole, reduced = (open_model(models[how]) for how in ("full", "reduced"))
    assert reduced.record["policy"]["decode"] == "reduced"
    # As in the records of models that knew no other way.
    assert "decode" not in whole.record["policy"]
    assert (whole.policy.decode, reduced.policy.decode) == ("full", "reduced")
    assert whole.model_id != reduced.model_id


@pytest.mark.parametrize("how", ["full", "reduced"])
def test_score_decodes_as_the_model_says(models: dict[str, str], how: str, tmp_path: Path) -> None:
    images = [tmp_path / f"{number}.dcm" for number in OTHERS]
    for path, number in zip(images, OTHERS, strict=True):
        path.write_bytes(kit.jpeg_2000(number, SIDE_PX))
    found = score(model=models[how], images=[str(path) for path in images])
    opened = open_model(models[how])
    for way, alike in (("full", how == "full"), ("reduced", how == "reduced")):
        policy = opened.policy.model_copy(update={"decode": way})
        expected = Scorer(opened.detector).score(kit.pixels(path.read_bytes(), policy) for path in images)
        scores = [frame.score for frame in expected]
        assert np.allclose([row["score"] for row in found], scores, rtol=1e-5, atol=0) == alike
    assert [row["error_detail"] for row in found] == [None] * len(images)


def test_the_row_says_that_a_frame_was_decoded_whole(models: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "one.dcm"
    path.write_bytes(kit.jpeg_2000(40, SIDE_PX, resolutions=1))
    told = [score(model=models[how], images=[str(path)])[0]["error_detail"] for how in ("full", "reduced")]
    assert told == [None, "decoded_whole"]
