"""Every detector at a scale that a CPU fits in seconds: what contract, golden curves and tests of several workers run.

This is the one table to extend: a new detector joins by a row for each of its presets.
A row's contract begins with all options of its preset. What stands here is smaller (epochs, batches, widths, a backbone
that needs no download) or faster (the rate, as there are few steps); the method is the preset's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from models import registry

Options = Mapping[str, Any]


class Curve(NamedTuple):
    """Twenty steps in all, two an epoch, equally many in each of `phases`, at options that pin the formulas."""

    options: Options
    phases: tuple[str, ...]
    size_px: tuple[int, int] = (32, 48)


class Work(NamedTuple):
    """A small fit on several workers: with what, on what, and where in it the fit is stopped."""

    options: Options
    size_px: tuple[int, int]
    # None: it is only compared whole.
    stop_in: str | None = None
    stop_after: int = 2
    # With batches of 4, the last one has an image for one rank alone.
    images: int = 9


@dataclass(frozen=True)
class Case:
    """One way through a detector: its kind at a preset's options, and what is smaller."""

    kind: str
    preset: str = "fast"
    # Of the contract suite; None leaves the row out there.
    contract: Options | None = None
    curve: Curve | None = None
    work: Work | None = None

    def options(self) -> dict[str, Any]:
        """The options that the contract suite fits with."""
        return {**registry.preset(self.kind, self.preset).options, **(self.contract or {})}


# Weights that need no download.
INSTALLED = {"backbone": "efficientnet_lite0"}
RESNET = {"backbone": "resnet18", "weights": "random", "layers": (2, 3)}
FYD_SMALL = {**RESNET, "width": 8, "align_stages": True, "contrast": True, "lr": 1e-3}
PARTS = {"latent": 12, "partitions": 3, "items": 3}
SEVEN = {"epochs": 7, "batch_size": 4}
CYCLE = {"ngf": 4, "blocks": 1, "ndf": 4}

CASES: dict[str, Case] = {
    "padim": Case(
        "padim",
        contract={"batch_size": 8},
        work=Work({"dims": 16, "batch_size": 4}, (64, 96), "statistics", stop_after=1),
    ),
    "padim-paper": Case("padim", "paper", contract={**INSTALLED, "dims": 100, "batch_size": 8}),
    "knn": Case(
        "knn",
        contract={"batch_size": 8, "items": 256},
        work=Work({"items": 40, "candidates": 60, "batch_size": 4}, (64, 96), "memory", stop_after=1),
    ),
    "knn-paper": Case("knn", "paper", contract={**INSTALLED, "batch_size": 8, "items": 256}),
    "linear": Case(
        "linear", contract={"batch_size": 8}, work=Work({"batch_size": 4}, (32, 48), "statistics", stop_after=1)
    ),
    "linear-paper": Case("linear", "paper", contract={"batch_size": 8, "grid": 40, "cells": (5, 10)}),
    "linear-patches": Case(
        "linear",
        contract={"batch_size": 8, "patch": 8, "cells": (2, 4)},
        work=Work({"batch_size": 4, "patch": 8, "cells": (2, 4)}, (32, 48)),
    ),
    "ssm": Case(
        "ssm",
        contract={"epochs": 20, "batch_size": 4, "lr": 3e-3, "width": 4},
        curve=Curve({"width": 4, "epochs": 10, "grid": 0}, ("paint",)),
        work=Work({**SEVEN, "width": 4}, (32, 48), "paint"),
    ),
    "ssm-paper": Case(
        "ssm",
        "paper",
        contract={"epochs": 6, "batch_size": 4, "lr": 1e-3, "width": 4, "cells_across": (16, 8, 4)},
        curve=Curve({"width": 4, "epochs": 10, "grid": 0, "masks": "disjoint", "mask_blocks": True}, ("paint",)),
        work=Work(
            {
                **SEVEN,
                "width": 4,
                "grid": 0,
                "masks": "disjoint",
                "mask_blocks": True,
                "refine": "disjoint",
                "score": "published",
            },
            (32, 48),
        ),
    ),
    "ssm-joint": Case(
        "ssm",
        contract={
            "epochs": 20,
            "batch_size": 4,
            "lr": 3e-3,
            "width": 4,
            "grid": 0,
            "mask_blocks": True,
            "refine": "joint",
            "refine_steps": 2,
        },
    ),
    "ssm_residual": Case(
        "ssm_residual",
        contract={"epochs": 2, "batch_size": 8, "width": 4},
        work=Work({**SEVEN, "width": 4}, (32, 48), "paint"),
    ),
    "ssm_residual-paper": Case(
        "ssm_residual", "paper", contract={"epochs": 2, "batch_size": 8, "width": 4, "grid": 32}
    ),
    "pmad": Case(
        "pmad",
        contract={"epochs": 60, "batch_size": 4, "lr": 5e-3},
        curve=Curve({"epochs": 10, "grid": 16, **PARTS}, ("rebuild",)),
        work=Work({**SEVEN, "grid": 16, **PARTS}, (32, 48), "rebuild"),
    ),
    "pmad-paper": Case(
        "pmad",
        "paper",
        contract={
            **{"epochs": 60, "batch_size": 4, "lr": 5e-3},
            **{"grid": 32, "latent": 128, "partitions": 4, "items": 24},
        },
    ),
    "pmad-plain": Case("pmad", contract={"epochs": 60, "batch_size": 4, "lr": 5e-3, "latent": 16, "memory": False}),
    "autoencoder": Case(
        "autoencoder",
        contract={"epochs": 24, "batch_size": 4, "lr": 3e-3, "width": 4},
        curve=Curve({"width": 4, "epochs": 10}, ("rebuild",)),
        work=Work({**SEVEN, "width": 4}, (32, 48), "rebuild"),
    ),
    "autoencoder-paper": Case("autoencoder", "paper", contract={"epochs": 16, "batch_size": 4, "lr": 3e-3, "width": 4}),
    "mkd": Case(
        "mkd",
        # Six epochs: the late average has two, and a fit can stop between them.
        contract={"epochs": 6, "batch_size": 8, "lr": 3e-3},
        work=Work(SEVEN, (32, 64), "distil"),
    ),
    "mkd-paper": Case(
        "mkd",
        "paper",
        # `source_rescale=none` suits VGG's maps alone.
        contract={**INSTALLED, "source_rescale": "rms", "epochs": 6, "batch_size": 8, "lr": 3e-3},
        work=Work({**SEVEN, "source_rescale": "none", "selection": "last", "cache_mib": 0}, (32, 64)),
    ),
    "cyclegan": Case(
        "cyclegan",
        # Small batches, for many steps.
        contract={"epochs": 24, "batch_size": 2, "views": 2, "lr": 1e-3, **CYCLE},
        curve=Curve({**CYCLE, "epochs": 10}, ("translate",)),
        # So many images that buffers are full and exchange.
        work=Work({**SEVEN, **CYCLE, "residual": False}, (24, 32), "translate", images=13),
    ),
    "cyclegan-paper": Case(
        "cyclegan",
        "paper",
        contract={**CYCLE, "epochs": 16, "batch_size": 4, "lr": 2e-3},
        curve=Curve(
            {
                **CYCLE,
                "epochs": 10,
                "lr": 2e-4,
                "residual": False,
                "lambda_cycle": 10,
                "views": 1,
                "other_class": 0,
                "jitter": False,
            },
            ("translate",),
        ),
        # New, it changes nothing: the cycle's absolute differences are rounding, and their signs the gradient.
        # So there are few steps.
        work=Work({**SEVEN, **CYCLE}, (24, 32)),
    ),
    "fyd": Case(
        "fyd",
        # Contrast is what a rate can make diverge.
        contract={"contrast": True, "epochs": 2, "batch_size": 8, "align_epochs": 3, "layers": (2, 3, 4)},
        curve=Curve({**FYD_SMALL, "align_epochs": 5, "epochs": 5}, ("align", "contrast"), (64, 96)),
        work=Work({**FYD_SMALL, "dims": 16, "batch_size": 4, "align_epochs": 4, "epochs": 4}, (64, 64), "contrast"),
    ),
    "fyd-paper": Case(
        "fyd",
        "paper",
        contract={**INSTALLED, "dims": 100, "width": 16, "epochs": 2, "batch_size": 8, "align_epochs": 3},
    ),
}
