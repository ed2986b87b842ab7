"""A fused detector scores by the contract's rules: members of three inputs, one of which takes a gradient for its map.

It has no fit of its own, so that the rules of fits are its members'.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import pytest
from cases import CASES
from contract import checks, fits, scores
from contract.given import FITTED, images
from contract.maker import SIZE_PX, Maker, fit

from models.detector import Detector
from models.fused import Fused, Member, assembled
from models.parts.resample import as_input
from models.registry import DETECTORS, FUSED


@dataclass(frozen=True, eq=False)
class FusedMaker(Maker):
    """Makes fused detectors: in grey at half the size, in colour at three quarters of it, and at its whole."""

    _fitted: dict[tuple[int, int], Fused] = field(default_factory=dict, init=False, repr=False)

    def members(self, size_px: tuple[int, int]) -> list[tuple[str, Detector]]:
        """New members with their kinds."""
        made = []
        for name, channels, share in (("linear", 1, 1 / 2), ("padim", 3, 3 / 4), ("mkd-paper", 3, 1)):
            case = CASES[name]
            entry = replace(DETECTORS[case.kind], channels=channels)
            height, width = (int(share * side) for side in size_px)
            made.append((case.kind, Maker(entry, case.options())((height, width))))
        return made

    def fused(self, members: list[tuple[str, Detector]]) -> Fused:
        """The members as one, with equal weights."""
        told = [
            Member(
                kind=kind, config=one.config.model_dump(mode="json"), spec=one.spec, model_id=f"{n:012}", source=None
            )
            for n, (kind, one) in enumerate(members)
        ]
        return assembled(told, [one for _, one in members], [1 / len(members)] * len(members))

    def __call__(self, size_px: tuple[int, int] = SIZE_PX) -> Fused:
        return self.fused(self.members(size_px))

    def fitted(self, size_px: tuple[int, int]) -> Fused:
        """Members that were fitted on the same pictures, and the spread of what they give others."""
        if size_px not in self._fitted:
            members, data = self.members(size_px), images(FITTED, self, size_px, seed=0)
            for _, one in members:
                fit(one, as_input(data, one.spec).clamp(0, 1))
            fused = self.fused(members)
            for number, found in enumerate(fused.scores(images(8, self, size_px, seed=9))):
                fused.score_spread[number] = found.image.std()
                fused.heatmap_spread[number] = found.heatmap.std()
            self._fitted[size_px] = fused
        return copy.deepcopy(self._fitted[size_px])


MAKE = FusedMaker(FUSED)
SCORING = [check for check in checks.CHECKS if check.__module__ == scores.__name__]
FINDING = [fits.check_defects_score_higher, fits.check_heatmap_is_hot_at_the_defect]


@pytest.mark.parametrize("check", [*SCORING, *FINDING], ids=checks.ids)
def test_a_fused_detector_keeps_the_contract(check: checks.Check, monkeypatch: pytest.MonkeyPatch) -> None:
    def fitted(make: FusedMaker, size_px: tuple[int, int] = SIZE_PX) -> Detector:
        return make.fitted(size_px)

    for module in (scores, fits):
        monkeypatch.setattr(module, "fitted", fitted)
    check(MAKE)
