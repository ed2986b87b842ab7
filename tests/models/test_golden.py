"""Golden loss curves: twenty steps of every detector but MKD, whose own stand beside its tests.

Which they are stands in tests/cases.py. After a change that is meant to move them, write them anew with
`REGENERATE=1 python -m pytest tests/models/test_golden.py`, and say so under "Numbers changed".
They run in float64 with weights from numpy, so that they pin the formulas: no machine's rounding, and no library's
initialisation.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CASES
from detectorkit import batches, build, numpy_weights
from textures import textures, with_defects
from torch import nn

from models.runtime import Runtime

FOLDER = Path(__file__).parents[1] / "golden"
RTOL = 1e-4
CURVES = {name: case.curve for name, case in CASES.items() if case.curve is not None}


def curve(name: str) -> dict[str, list[float]]:
    kind, (options, phases, size_px) = CASES[name].kind, CURVES[name]
    images = textures(8, *size_px).double()
    detector = build(kind, size_px, batch_size=4, **options)
    bad = with_defects(textures(8, *size_px, seed=2))[0].double() if detector.spec.needs_anomalous else None
    rng = np.random.default_rng(11)
    numpy_weights(detector, rng)
    learner = detector.double().learner(Runtime())
    for value in vars(learner).values():  # networks that live as long as the fit
        if isinstance(value, nn.Module) and value is not detector and value is not getattr(detector, "network", None):
            numpy_weights(value, rng)
            value.double()
    found: dict[str, list[float]] = {}
    with torch.random.fork_rng():
        for phase in phases:
            learner.start(phase)
            for _ in range(10 // len(phases)):
                for batch in batches(images, 4, bad):
                    for loss, value in learner.step(batch).items():
                        found.setdefault(f"{phase}/{loss}", []).append(float(value))
                learner.end_epoch()
            learner.finish(phase)
    return found


@pytest.mark.parametrize("name", CURVES)
def test_golden_loss_curve(name: str):
    found = curve(name)
    assert sum(len(values) for key, values in found.items() if key.endswith("/loss")) == 20
    path = FOLDER / f"{CASES[name].kind}.json"
    golden = json.loads(path.read_text()) if path.is_file() else {}
    if os.environ.get("REGENERATE") == "1":
        golden[name] = found
        path.write_text(json.dumps(golden, indent=1) + "\n")
    assert found.keys() == golden[name].keys()
    for key, values in found.items():
        np.testing.assert_allclose(values, golden[name][key], rtol=RTOL, atol=1e-9, err_msg=key)
