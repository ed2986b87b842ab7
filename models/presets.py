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
    "padim": {
        "fast": Preset((128, 128)),
        # Sigma is 4 px at 224.
        "paper": Preset(
            (224, 224),
            {
                "backbone": "wide_resnet50_2",
                "layers": (2, 3, 4),
                "patch": 1,
                "dims": 550,
                "bank": "joint",
                "blur": 4 * 128 / 224,
            },
        ),
    },
    "knn": {
        "fast": Preset((128, 128)),
        # PatchCore's network, stages and size; a tenth of the patches of some two hundred images are its memory.
        "paper": Preset(
            (224, 224),
            {
                "backbone": "wide_resnet50_2",
                "layers": (3, 4),
                "items": 16384,
                "candidates": 65536,
                "blur": 4 * 128 / 224,
            },
        ),
    },
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
    "linear": {
        "fast": Preset((64, 64)),
        # No paper's: a finer grid, for finer structure.
        "paper": Preset((128, 128), {"grid": 64, "cells": (8, 16)}),
    },
    "ssm": {
        "fast": Preset((64, 64)),
        # The published code's for Retinal-OCT (its train.py and test.py); lambda_mask is in its checkpoint's name.
        "paper": Preset(
            (128, 128),
            {
                "epochs": 50,
                "batch_size": 32,
                "lr": 1e-4,
                "width": 64,
                "grid": 0,
                # 2, 4 and 8 px.
                "cells_across": (64, 32, 16),
                "masks": "disjoint",
                "mirrored": False,
                "mask_blocks": True,
                "lambda_mask": 0.01,
                "refine": "disjoint",
                "refine_steps": 1,
                "score": "published",
            },
        ),
    },
    "ssm_residual": {
        "fast": Preset((64, 64)),
        # No paper's: a finer grid and a wider network.
        "paper": Preset((128, 128), {"epochs": 20, "width": 32, "grid": 64}),
    },
    "pmad": {
        "fast": Preset((64, 64)),
        # Neither text nor code is public: size, epochs and batch are those of the authors' next method (ADPS, TNNLS
        # 2024), grid, parts and items are ours at that scale.
        "paper": Preset((256, 256), {"epochs": 300, "grid": 64, "latent": 1024, "partitions": 16, "items": 48}),
    },
    "autoencoder": {
        "fast": Preset((32, 32)),
        # No paper's: SSM's scale, to hold its figures against.
        "paper": Preset((128, 128), {"epochs": 50, "batch_size": 32, "lr": 1e-4, "width": 64}),
    },
    "cyclegan": {
        "fast": Preset((64, 64)),
        # The published code's, for data sets of few images at 256 px.
        "paper": Preset(
            (256, 256),
            {
                "epochs": 200,
                "batch_size": 16,
                "lr": 2e-4,
                "ngf": 64,
                "ndf": 64,
                "blocks": 9,
                "residual": False,
                "lambda_cycle": 10.0,
                "lambda_identity": 5.0,
                "views": 1,
                "other_class": 0.0,
                "jitter": False,
            },
        ),
    },
    "fyd": {
        "fast": Preset((128, 128)),
        # The paper's are not public: RegAD's rates, epochs and widths, with PaDiM's larger backbone.
        "paper": Preset(
            (224, 224),
            {
                "backbone": "wide_resnet50_2",
                "layers": (2, 3, 4),
                "align_stages": True,
                "contrast": True,
                "epochs": 50,
                "batch_size": 32,
                "align_epochs": 100,
                "width": 256,
                "dims": 550,
            },
        ),
    },
}
