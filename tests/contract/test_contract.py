"""Every registered detector x every rule of the contract.

A new detector joins by its row in models/registry.py, and by its fast options here.
"""

from __future__ import annotations

from typing import Any

import pytest
from contract import checks
from contract.maker import Maker

from models.registry import DETECTORS

# Options under which a kind fits within seconds and still finds a pasted defect.
FAST_OPTIONS: dict[str, dict[str, Any]] = {
    "ssm": {"epochs": 6, "batch_size": 4, "width": 4, "cells": (2, 4, 8)},
    "pmad": {"epochs": 12, "batch_size": 4, "width": 4, "warmup": 2, "items": 20},
    # Six epochs: the late average has two, and a fit can stop between them.
    "mkd": {"epochs": 6, "batch_size": 8, "lr": 3e-3},
    # Small batches, for many steps.
    "cyclegan": {"epochs": 24, "batch_size": 2, "views": 2, "lr": 1e-3, "ngf": 4, "blocks": 1, "ndf": 4},
    "fyd": {
        "epochs": 2,
        "batch_size": 8,
        "layers": (2, 3, 4),
        "align_image": True,
        "align_stages": True,
        "contrast": True,
        "align_epochs": 3,
    },
}
# Other ways through the same detector, held to the same rules.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mkd-gradient": (
        "mkd",
        {"map": "gradient", "score": "flat", "selection": "last", "layers": (2, 3, 4), "layers_score": (3, 4)},
    ),
    "ssm-joint": (
        "ssm",
        {
            "mask_blocks": True,
            "refine": "joint",
            "refine_steps": 2,
            "masks": "disjoint",
            "score": "max",
            "color_weight": 1.0,
        },
    ),
    "ssm-autoencoder": ("ssm", {"model": "autoencoder", "epochs": 12, "score": "max", "color_weight": 1.0}),
    "pmad-pixel": (
        "pmad",
        {
            "modes": ("none", "pmb", "skip", "pmb"),
            "query": "pixel",
            "shared_memory": True,
            "error": "both",
            "score": "mean",
        },
    ),
    "pmad-plain": ("pmad", {"modes": ("none", "none", "none", "none"), "hee": False, "error": "abs", "score": "max"}),
    "cyclegan-paper": (
        "cyclegan",
        {
            "residual": False,
            "lambda_cycle": 10,
            "zoom": 0,
            "shift": 0,
            "contrast": 0,
            "views": 1,
            "other_class": 0,
            "score": "max",
            "epochs": 16,
            "batch_size": 4,
            "lr": 2e-3,
        },
    ),
    "fyd-features": ("fyd", {"unwarp": "features", "bank": "joint", "flip": True, "selection": "watch"}),
}


def fast_options(kind: str) -> dict[str, Any]:
    if kind not in FAST_OPTIONS:
        pytest.fail(
            f"Every registered detector has fast options in {__name__}.FAST_OPTIONS. Got: {kind!r}, without any. "
            "Add a row with few epochs, so that the contract suite can run on it."
        )
    return FAST_OPTIONS[kind]


_makers: dict[str, Maker] = {}


def maker(name: str) -> Maker:
    """The one maker of a kind or variant, so that checks share its fit."""
    if name not in _makers:
        kind, changed = VARIANTS.get(name, (name, {}))
        _makers[name] = Maker(DETECTORS[kind], {**fast_options(kind), **changed})
    return _makers[name]


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("check", checks.CHECKS, ids=checks.ids)
def test_detector(name: str, check: checks.Check):
    check(maker(name))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    "check",
    # Another process costs seconds, and options change nothing in how a model is loaded.
    [check for check in checks.CHECKS if check is not checks.check_reloads_in_a_fresh_process],
    ids=checks.ids,
)
def test_variant(name: str, check: checks.Check):
    check(maker(name))


def test_a_registered_kind_without_fast_options_fails_clearly():
    with pytest.raises(pytest.fail.Exception, match=r"FAST_OPTIONS\. Got: 'unheard-of', without any\. Add a row"):
        fast_options("unheard-of")


def test_fast_options_name_registered_kinds_alone():
    assert FAST_OPTIONS.keys() <= DETECTORS.keys()
