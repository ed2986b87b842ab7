"""A model of `decode: reduced` scores what it was fitted on, and is another one than a model of whole frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import detectorkit
import dicomkit
import imagecodecs
import numpy as np
import pytest
import scankit
import torch
from numpy.typing import NDArray
from pydicom.uid import JPEG2000Lossless

from ad_jobs.fitting.intent import resolve
from ad_jobs.images.decode import decode
from ad_jobs.images.domain import DomainFile
from ad_jobs.images.model_input import to_input
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.score import score
from ad_jobs.scoring.calibration import calibrate_on
from ad_jobs.scoring.held_out import HeldOut
from ad_jobs.scoring.model_store import open_model, publish, write_calibration
from ad_jobs.scoring.scorer import Scorer
from ad_jobs.specs import FitSpec

SIZE_PX = 16
# Four times the input's side, and not a multiple of it.
SIDE_PX = 4 * SIZE_PX + 3
NORMAL, OTHERS = range(20), range(30, 34)


def jpeg_2000(number: int, resolutions: int = 6) -> bytes:
    stored: NDArray[np.uint16] = np.rint(scankit.picture(number, SIDE_PX) * 4095).astype(np.uint16)
    how: dict[str, Any] = {"codecformat": "j2k", "reversible": True, "bitspersample": 12, "resolutions": resolutions}
    ds = dicomkit.dataset(stored, bits=12)
    dicomkit.encapsulated(ds, [bytes(imagecodecs.jpeg2k_encode(stored, 0, **how))])
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    return dicomkit.encode(ds)


def pixels(data: bytes, policy: PixelPolicy) -> NDArray[np.uint16]:
    return decode(data, policy, Limits()).frames[0].pixels


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of two models that were fitted alike but for how their images were decoded."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for how in ("full", "reduced"):
        intent = resolve(FitSpec(detector="linear", normal="/n", out="/m", size=SIZE_PX, decode=how)).in_grey()
        images = [pixels(jpeg_2000(number), intent.policy) for number in NORMAL]
        stacked = torch.from_numpy(to_input(np.stack(images), 1))
        detector = intent.detector()
        detectorkit.run_fit(detector, detectorkit.batches(stacked[:16], 16), detectorkit.batches(stacked[16:], 16))
        found[how] = str(folder / how)
        record = publish(found[how], "linear", detector, intent.policy, {"seed": 0}, DomainFile())
        given = calibrate_on(detector, map(HeldOut, images), model_id=record["model_id"], source="test", max_fpr=0.1)
        write_calibration(found[how], given)
    return found


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
        path.write_bytes(jpeg_2000(number))
    found = score(model=models[how], images=[str(path) for path in images])
    opened = open_model(models[how])
    for way, alike in (("full", how == "full"), ("reduced", how == "reduced")):
        policy = opened.policy.model_copy(update={"decode": way})
        expected = Scorer(opened.detector).score(pixels(path.read_bytes(), policy) for path in images)
        scores = [frame.score for frame in expected]
        assert np.allclose([row["score"] for row in found], scores, rtol=1e-5, atol=0) == alike
    assert [row["error_detail"] for row in found] == [None] * len(images)


def test_the_row_says_that_a_frame_was_decoded_whole(models: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "one.dcm"
    path.write_bytes(jpeg_2000(40, resolutions=1))
    told = [score(model=models[how], images=[str(path)])[0]["error_detail"] for how in ("full", "reduced")]
    assert told == [None, "decoded_whole"]
