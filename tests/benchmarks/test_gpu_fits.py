"""Fits of a GPU run: every detector can be fitted shortly."""

from __future__ import annotations

import pytest

from benchmarks.gpu.fits import short
from models import registry


@pytest.mark.parametrize("kind", registry.DETECTORS)
def test_a_short_fit_of_every_detector_sets_only_options_that_count(kind: str) -> None:
    config = registry.configure(kind, short(kind, 1))

    assert [name for name in short(kind, 1) if getattr(config, name) != 1] == []


def test_fyd_is_short_in_the_passes_that_it_makes() -> None:
    assert short("fyd", 2) == {"align_epochs": 2}
