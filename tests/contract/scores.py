"""The rules of the contract for what `score` gives, and for what it leaves alone; as `checks` has them."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from contract.given import fitted, images
from contract.maker import SIZE_PX, Maker
from torch import Tensor

from models import artifact
from models.detector import Detector, Scores
from models.errors import InputError
from models.record import DETECTOR, WEIGHTS

CHILD = Path(__file__).with_name("score_in_child.py")
# Kernels differ with the batch's size, and round otherwise: a few hundred float32 steps.
ROW_TOLERANCE = 1e-5
HEAT_TOLERANCE = 2e-5  # of single places of a heatmap; 1.2e-5 was seen of fyd on an AMD EPYC


def check_scores_are_finite_float32(make: Maker) -> None:
    detector = fitted(make)
    for count in (1, 5):
        scores = detector.score(images(count, make))
        assert isinstance(scores, Scores), "score() must return Scores"
        for name, tensor, shape in (("image", scores.image, (count,)), ("heatmap", scores.heatmap, (count, *SIZE_PX))):
            assert tuple(tensor.shape) == shape, f"{name} must have shape {shape}, has {tuple(tensor.shape)}"
            assert tensor.dtype == torch.float32, f"{name} must be float32, is {tensor.dtype}"
            assert bool(torch.isfinite(tensor).all()), f"{name} must be finite"
            assert not tensor.requires_grad, f"{name} must be detached"


def check_constant_images_score_finite(make: Maker) -> None:
    """Black and white images occur in every archive; divisions by their spread must be guarded."""
    black = torch.zeros(1, make.entry.channels, *SIZE_PX)
    scores = fitted(make).score(torch.cat([black, torch.ones_like(black), images(1, make)]))
    for tensor in scores:
        assert bool(torch.isfinite(tensor).all()), "constant images must have finite scores"


def check_score_keeps_weights(make: Maker) -> None:
    detector = fitted(make)
    before = copy.deepcopy(detector.state_dict())
    detector.score(images(3, make))
    after = detector.state_dict()
    assert before.keys() == after.keys(), "score() must not add or remove weights"
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), f"score() changed {name}"


def check_score_keeps_modes(make: Maker) -> None:
    """Every submodule has its own mode back, also where it differs from its parent's."""
    detector = fitted(make)
    for training in (True, False):
        for number, part in enumerate(detector.modules()):
            part.training = training if number % 3 else not training
        before = {name: part.training for name, part in detector.named_modules()}
        detector.score(images(2, make))
        for name, part in detector.named_modules():
            assert part.training == before[name], f"score() changed the training mode of {name or 'the detector'}"


def check_training_mode_does_not_matter(make: Maker) -> None:
    detector, batch = fitted(make), images(4, make)
    plain = detector.score(batch)
    training = detector.train().score(batch)
    assert torch.equal(plain.image, training.image), "score() must not depend on the training mode"
    assert torch.equal(plain.heatmap, training.heatmap), "score() must not depend on the training mode"


def check_score_keeps_gradients(make: Maker) -> None:
    detector = fitted(make)
    names = dict(detector.named_parameters())
    for parameter in names.values():
        parameter.grad = None
    detector.score(images(2, make))
    for name, parameter in names.items():
        assert parameter.grad is None, f"score() left a gradient in {name}"
        parameter.grad = torch.full_like(parameter, 0.5)
    detector.score(images(2, make))
    for name, parameter in names.items():
        kept = parameter.grad is not None and bool((parameter.grad == 0.5).all())
        assert kept, f"score() changed the gradient of {name}"


def check_score_keeps_random_generators(make: Maker) -> None:
    detector = fitted(make)
    batch = images(2, make)
    torch_before, python_before = torch.get_rng_state(), random.getstate()
    numpy_before = np.random.get_state()
    detector.score(batch)
    numpy_after = np.random.get_state()
    assert torch.equal(torch_before, torch.get_rng_state()), "score() drew from torch's generator"
    assert python_before == random.getstate(), "score() drew from Python's generator"
    assert str(numpy_before) == str(numpy_after), "score() drew from numpy's generator"


def check_score_keeps_its_input(make: Maker) -> None:
    batch = images(3, make)
    before = batch.clone()
    fitted(make).score(batch)
    assert torch.equal(before, batch), "score() changed its input"
    assert batch.grad is None, "score() left a gradient in its input"
    assert not batch.requires_grad, "score() left its input asking for gradients"


def check_score_repeats(make: Maker) -> None:
    detector, batch = fitted(make), images(3, make)
    for first, second in zip(detector.score(batch), detector.score(batch), strict=True):
        assert torch.equal(first, second), "the same images must have the same scores again"


def check_rows_are_independent(make: Maker) -> None:
    detector, batch = fitted(make), images(32, make)
    # One row unlike all others, so that anything taken over the batch moves.
    batch[7] = torch.rand(batch.shape[1:], generator=torch.Generator().manual_seed(0))
    together = detector.score(batch)
    median = float(np.median(together.image.numpy()))
    flags = together.image > median
    shuffled = torch.from_numpy(np.random.default_rng(3).permutation(32))
    orders = {
        "one by one": [torch.tensor([row]) for row in range(32)],
        "by sevens": list(torch.arange(32).split(7)),
        "shuffled": [shuffled],
        "shuffled by sevens": list(shuffled.split(7)),
    }
    for how, parts in orders.items():
        rows = torch.cat(parts)
        scores = [detector.score(batch[part]) for part in parts]
        image = torch.cat([s.image for s in scores])
        heatmap = torch.cat([s.heatmap for s in scores])
        _assert_close(image, together.image[rows], f"image scores {how}", ROW_TOLERANCE)
        for row, alone in zip(rows, heatmap, strict=True):
            _assert_close(alone, together.heatmap[row], f"heatmap {how}", HEAT_TOLERANCE)
        assert torch.equal(image > median, flags[rows]), f"a flag changed {how}"


def _assert_close(found: Tensor, expected: Tensor, what: str, tolerance: float) -> None:
    worst = float((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
    assert worst <= tolerance, f"{what} must equal those of the whole batch; off by {worst:.1e}"


def check_images_need_not_be_square(make: Maker) -> None:
    for size_px in ((64, 32), (32, 64)):
        try:
            scores = make(size_px).eval().score(images(2, make, size_px))
        except RuntimeError as error:
            raise AssertionError(f"images of {size_px} must score; got: {error}") from error
        assert tuple(scores.heatmap.shape) == (2, *size_px), "heatmaps must have the images' height and width"


def wrong_inputs(make: Maker) -> dict[str, tuple[Tensor, str]]:
    """Images that break one rule each, and what the message has to name."""
    good = images(2, make)
    channels = good.shape[1]

    def spoilt(value: float) -> Tensor:
        bad = good.clone()
        bad[1, 0, 3, 4] = value
        return bad

    return {
        "no batch axis": (good[0], str(list(good[0].shape))),
        "sides swapped": (good.transpose(2, 3), str(list(good.transpose(2, 3).shape))),
        "another size": (good[:, :, :-8], str(list(good[:, :, :-8].shape))),
        "channels": (torch.cat([good, good[:, :1]], 1), f"[2, {channels + 1}, "),
        "float64": (good.double(), "float64"),
        "bytes": ((good * 255).to(torch.uint8), "uint8"),
        "above 1": (spoilt(1.5), "1.5"),
        "below 0": (spoilt(-0.25), "-0.25"),
        "NaN": (spoilt(float("nan")), "nan"),
        "infinite": (spoilt(float("inf")), "inf"),
    }


def check_wrong_input_is_refused(make: Maker) -> None:
    detector = make()
    for what, (bad, named) in wrong_inputs(make).items():
        message = _refusal(detector, bad, what)
        rule, _, rest = message.partition(" Got: ")
        value, _, remedy = rest.partition(". ")
        assert rule.endswith("."), f"{what}: the message must begin with the rule: {message}"
        assert named in value, f"{what}: the message must name the value {named}: {message}"
        assert remedy, f"{what}: the message must end with the remedy: {message}"


def _refusal(detector: Detector, bad: Tensor, what: str) -> str:
    try:
        detector.score(bad)
    except InputError as error:
        return str(error)
    except (RuntimeError, TypeError, ValueError) as error:
        raise AssertionError(f"{what}: must be an InputError, is {type(error).__name__}: {error}") from error
    raise AssertionError(f"{what}: must be an InputError, was scored")


def check_no_grad_changes_nothing(make: Maker) -> None:
    detector, batch = fitted(make), images(3, make)
    plain = detector.score(batch)
    try:
        with torch.no_grad():
            inside = detector.score(batch)
    except RuntimeError as error:
        raise AssertionError(f"score() must own its grad mode; inside no_grad: {error}") from error
    for name, one, other in zip(Scores._fields, plain, inside, strict=True):
        assert torch.equal(one, other), f"{name} must be the same inside torch.no_grad"


def check_reloads_in_a_fresh_process(make: Maker) -> None:
    detector, batch = fitted(make), images(5, make)
    expected = detector.score(batch)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        artifact.save(folder / "model", make.entry.kind, detector, {}, {})
        found = {path.name for path in (folder / "model").iterdir()}
        assert found == {DETECTOR, WEIGHTS}, f"a model is two files, not {sorted(found)}"
        torch.save(batch, folder / "batch.pt")
        child = subprocess.run(
            [sys.executable, str(CHILD), str(folder), json.dumps(dataclasses.asdict(make.entry))],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert child.returncode == 0, f"a saved detector must load: {child.stderr.strip().splitlines()[-1:]}"
        image, heatmap = torch.load(folder / "scores.pt", weights_only=True)
    assert torch.equal(image, expected.image), "image scores must be identical after saving and loading"
    assert torch.equal(heatmap, expected.heatmap), "heatmaps must be identical after saving and loading"
