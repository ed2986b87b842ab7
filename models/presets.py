"""The scales a detector comes in, as data: `fast` is what two cores can do, `paper` what its paper reports.

A configuration's defaults are its fast preset, so that one overrides nothing; its size is that of the stored figures
(benchmarks/results/quality.md). Every detector has both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """The size of the images and the options of one scale of a detector."""

    # Height and width.
    size_px: tuple[int, int]
    options: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, dict[str, Preset]] = {
    "mkd": {
        "fast": Preset((128, 128)),
        # The published code's settings for MVTec AD.
        "paper": Preset(
            (128, 128),
            {
                "backbone": "vgg16",
                "epochs": 600,
                "batch_size": 64,
                "source_rescale": "none",
                "score": "flat",
                "map": "gradient",
                "selection": "last",
            },
        ),
    },
    "pmad": {
        "fast": Preset((64, 64)),
        "paper": Preset(
            (256, 256),
            {
                "epochs": 300,
                "batch_size": 32,
                "lr": 1e-4,
                "width": 64,
                "items": 200,
                "partitions": (16, 8, 8, 4),
                "warmup": 15,
                "modes": ("none", "pmb", "skip", "pmb"),
            },
        ),
    },
    "ssm": {
        "fast": Preset((64, 64)),
        "paper": Preset(
            (256, 256),
            {"epochs": 50, "batch_size": 32, "lr": 1e-4, "width": 64, "cells": (2, 4, 8, 16), "mask_blocks": True},
        ),
    },
    "cyclegan": {
        "fast": Preset((64, 64)),
        "paper": Preset(
            (256, 256),
            {"epochs": 200, "batch_size": 16, "lr": 2e-4, "ngf": 64, "ndf": 64, "blocks": 9, "lambda_cycle": 10.0},
        ),
    },
    "fyd": {
        "fast": Preset((128, 128)),
        "paper": Preset((224, 224), {"backbone": "wide_resnet50_2", "layers": (2, 3, 4), "dims": 550, "epochs": 50}),
    },
}
