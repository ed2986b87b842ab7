"""What a detector costs, as its fit measures it and a scan reads it."""

import json
from pathlib import Path

import scankit as kit
import torch
from torch import Tensor

from ad_jobs.fitting.cost import score_cpu_ms
from ad_jobs.scanning.intent import resolve
from ad_jobs.specs import ScanSpec
from models import artifact
from models.detector import Detector, InputSpec, Scores


class Working(Detector):
    """Multiplies matrices so many times an image."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.spec = InputSpec(channels=3, height_px=32, width_px=48)
        self.times = times
        self.threads: set[int] = set()

    def score(self, images: Tensor) -> Scores:
        assert images.shape[1:] == (3, 32, 48)
        self.threads.add(torch.get_num_threads())
        work = torch.rand(128, 128)
        for _ in range(self.times * len(images)):
            work = work @ work / 128
        return Scores(torch.zeros(len(images)), torch.zeros(len(images), 32, 48))

    learner = None


def test_the_cost_follows_the_work_on_one_thread() -> None:
    before = torch.get_num_threads()
    little, much = Working(20), Working(2000)
    # A hundredfold; of which the clock of a thread sees a good part on any machine.
    assert score_cpu_ms(much) > 10 * score_cpu_ms(little)
    assert little.threads == much.threads == {1}
    assert torch.get_num_threads() == before


def test_a_scan_adds_up_what_its_models_cost(tmp_path: Path) -> None:
    source = kit.write_archive(tmp_path / "archive", kit.good_objects(3))
    models = [kit.make_model(tmp_path / f"model-{seed}", seed) for seed in (0, 1)]

    def cost() -> float | None:
        return resolve(ScanSpec(source=source, model=models, out=str(tmp_path / "run"))).score_ms

    for model, told, found in zip(models, (2.5, 40.0), (None, 42.5), strict=True):
        path = Path(model) / artifact.DETECTOR
        path.write_text(json.dumps(json.loads(path.read_text()) | {"score_cpu_ms": told}))
        # Not known while one of them does not say; and the model is the same.
        assert cost() == found
