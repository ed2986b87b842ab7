"""Golden loss curves: twenty steps of every detector but MKD, whose own stand beside its tests.

After a change that is meant to move them, write them anew with `REGENERATE=1 python -m pytest tests/models/test_golden.py`,
and say so under "Numbers changed". They run in float64 with weights from numpy, so that they pin the formulas and neither a
machine's rounding nor a library's initialisation.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectorkit import batches, build, numpy_weights
from textures import textures, with_defects
from torch import nn

from models.detector import Runtime

FOLDER = Path(__file__).parents[1] / "golden"
RTOL = 1e-4
SIZE = (32, 48)
# kind: options, and the phase with its number of epochs, two steps each.
CURVES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "ssm": ("ssm", {"width": 4, "epochs": 10}, ("paint",)),
    "ssm-mask-blocks": ("ssm", {"width": 4, "epochs": 10, "mask_blocks": True}, ("paint",)),
    "ssm-autoencoder": ("ssm", {"width": 4, "epochs": 10, "model": "autoencoder"}, ("paint",)),
    "pmad": (
        "pmad",
        {"width": 4, "epochs": 10, "items": 6, "warmup": 4, "modes": ["none", "pmb", "skip", "pmb"]},
        ("rebuild",),
    ),
    "cyclegan": ("cyclegan", {"ngf": 4, "blocks": 1, "ndf": 4, "epochs": 10}, ("translate",)),
    "cyclegan-paper": (
        "cyclegan",
        {
            "ngf": 4,
            "blocks": 1,
            "ndf": 4,
            "epochs": 10,
            "residual": False,
            "lambda_cycle": 10,
            "zoom": 0,
            "shift": 0,
            "contrast": 0,
            "views": 1,
            "other_class": 0,
            "lr": 2e-4,
        },
        ("translate",),
    ),
    "fyd": (
        "fyd",
        {
            "backbone": "resnet18",
            "weights": "random",
            "layers": (2, 3),
            "align_image": True,
            "align_stages": True,
            "contrast": True,
            "align_epochs": 5,
            "epochs": 5,
            "stn_hidden": 8,
            "width": 8,
            "lr": 1e-3,
        },
        ("align", "contrast"),
    ),
}


def curve(name: str) -> dict[str, list[float]]:
    kind, options, phases = CURVES[name]
    size = (64, 96) if kind == "fyd" else SIZE
    images = textures(8, *size).double()
    bad = with_defects(textures(8, *size, seed=2))[0].double() if kind == "cyclegan" else None
    detector = build(kind, size, batch_size=4, **options)
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
    path = FOLDER / f"{CURVES[name][0]}.json"
    golden = json.loads(path.read_text()) if path.is_file() else {}
    if os.environ.get("REGENERATE") == "1":
        golden[name] = found
        path.write_text(json.dumps(golden, indent=1) + "\n")
    assert found.keys() == golden[name].keys()
    for key, values in found.items():
        np.testing.assert_allclose(values, golden[name][key], rtol=RTOL, atol=1e-9, err_msg=key)
