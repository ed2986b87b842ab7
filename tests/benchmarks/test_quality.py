"""Every cell of quality.yaml can be fitted by this version: its detector, options and variants are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ad_jobs.specs import AUTO
from models import registry
from models.registry import FUSED

PLAN = yaml.safe_load((Path(__file__).parents[2] / "benchmarks" / "quality.yaml").read_text())


@pytest.mark.parametrize("cell", PLAN["cells"], ids=lambda cell: cell["name"])
def test_a_cell_names_options_that_its_detector_has(cell: dict):
    assert set(cell["data"]) <= PLAN["data"].keys()
    if cell["detector"] in (AUTO, FUSED.kind):
        # What they are made of is fitted by itself.
        assert set(cell.get("members", [])) <= {one["name"] for one in PLAN["cells"]}
        return
    config = registry.configure(cell["detector"], cell.get("set", {}))
    for options in cell.get("variants", {}).values():
        # As benchmarks.quality does: over the whole configuration of the fitted model.
        registry.configure(cell["detector"], config.model_dump(mode="json") | options)
