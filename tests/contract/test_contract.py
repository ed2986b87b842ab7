"""Every registered detector x every rule of the contract, at its defaults and at its paper's settings."""

from __future__ import annotations

from itertools import product

import pytest
from cases import CASES
from contract import checks, fits, scores
from contract.maker import Maker

from models.presets import PRESETS
from models.registry import DETECTORS

CONTRACT = [name for name, case in CASES.items() if case.contract is not None]

_makers: dict[str, Maker] = {}


def maker(name: str) -> Maker:
    """The one maker of a row, so that checks share its fit."""
    if name not in _makers:
        case = CASES[name]
        _makers[name] = Maker(DETECTORS[case.kind], case.options())
    return _makers[name]


def applies(check: checks.Check, name: str) -> bool:
    # Another process costs seconds, and options change nothing in how a model is loaded.
    if check is scores.check_reloads_in_a_fresh_process:
        return name in DETECTORS
    # Nothing that is not trained has a rate at which it diverges.
    return check is not fits.check_diverging_fit_stops or maker(name).trained


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(name, check, id=f"{name}-{checks.ids(check)}")
        for check, name in product(checks.CHECKS, CONTRACT)
        if applies(check, name)
    ],
)
def test_detector(name: str, check: checks.Check):
    check(maker(name))


@pytest.mark.parametrize(("kind", "preset"), [(kind, preset) for kind in DETECTORS for preset in PRESETS[kind]])
def test_every_detector_is_held_to_the_contract_at_every_preset(kind: str, preset: str):
    rows = {(CASES[name].kind, CASES[name].preset) for name in CONTRACT}
    assert (kind, preset) in rows, f"add a row for {kind} at its {preset} preset to tests/cases.py, with few epochs"


def test_rows_name_registered_kinds_alone():
    assert {case.kind for case in CASES.values()} <= DETECTORS.keys()
