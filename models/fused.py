"""Fused: several fitted detectors that score one image together. No paper is claimed.

Each member's score is divided by the spread of what it gives held-out normals, so that one of them counts as much as
another, and the fused score is their weighted mean; so is the heatmap, pixel by pixel.
Means are not taken off: that would change no order of images, and make of every score a small difference of large
numbers, which no two machines round alike.

Nothing is learnt here: members are fitted by themselves, and spreads and weights come from held-out normals
(ad_jobs/fitting/fusion.py).

The input is as large as the largest member's, and in colour if one takes colour; the others get it resampled by area,
and as luma (models/parts/resample.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models import registry
from models.detector import Detector, DetectorConfig, InputSpec, Learner, Scores, evaluating
from models.errors import ConfigError
from models.parts.maps import enlarged
from models.parts.resample import as_input
from models.runtime import Runtime


class Member(BaseModel):
    """A fitted model inside: its kind and configuration, its own input, and its id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    config: dict[str, Any]
    spec: InputSpec
    model_id: str
    # Of the pretrained network inside, as its own record says.
    source: dict[str, Any] | None = None


class FusedConfig(DetectorConfig):
    """The members, in the order of their weights."""

    members: tuple[Member, ...] = Field(min_length=1)


class Fused(Detector):
    """The members; of each the spread of its scores, and of its heatmaps' pixels, on normal images, and its weight.

    Weights sum to 1.
    """

    score_spread: Tensor
    heatmap_spread: Tensor
    weight: Tensor

    def __init__(self, config: FusedConfig, spec: InputSpec, *, pretrained: bool = True) -> None:
        # Members are fitted: what they learnt comes with a state dict.
        del pretrained
        super().__init__()
        self.config: FusedConfig = config
        self.spec = spec
        self.members = nn.ModuleList(_empty(member) for member in config.members)
        for name in ("score_spread", "heatmap_spread", "weight"):
            self.register_buffer(name, torch.ones(len(config.members)))

    @property
    def one_graph(self) -> bool:
        return all(member.one_graph for member in self._detectors())

    def _detectors(self) -> list[Detector]:
        # A module list forgets of which kind its modules are.
        return cast(list[Detector], list(self.members))

    def scores(self, images: Tensor) -> list[Scores]:
        """What each member gives, heatmaps at the fused input's size."""
        found = []
        for member in self._detectors():
            # Luma may exceed 1 by a rounding.
            image, heatmap = member.score(as_input(images, member.spec).clamp(0.0, 1.0))
            same = member.spec.size_px == self.spec.size_px
            found.append(Scores(image, heatmap if same else enlarged(heatmap, self.spec.size_px)))
        return found

    def source_record(self) -> dict[str, Any]:
        """The members with their weights, and the pretrained network of each."""
        return {
            "members": [
                {"kind": one.kind, "model_id": one.model_id, "weight": round(weight, 4), "source": one.source}
                for one, weight in zip(self.config.members, self.weight.tolist(), strict=True)
            ]
        }

    def score(self, images: Tensor) -> Scores:
        self.spec.check(images)
        # A member that takes a gradient switches it on for itself.
        with evaluating(self), torch.no_grad():
            by_score, by_heatmap = self.weight / self.score_spread, self.weight / self.heatmap_spread
            found = self.scores(images)
            # No zeros to begin with: their shape would fix the size of a batch in a traced graph.
            image = torch.stack([share * one.image for share, one in zip(by_score, found, strict=True)]).sum(0)
            heatmap = torch.stack([share * one.heatmap for share, one in zip(by_heatmap, found, strict=True)]).sum(0)
        return Scores(image, heatmap)

    def learner(self, runtime: Runtime) -> Learner:
        del runtime
        raise ConfigError(
            "A fused model is made of fitted ones, and learns nothing itself.",
            "a fit of it",
            "Fit its members, then `retroscan fuse MODEL MODEL --out MODEL`.",
        )


def common_input(specs: list[InputSpec]) -> InputSpec:
    """The input from which that of every spec follows: the largest height and width, in colour if one is."""
    return InputSpec(
        channels=max(spec.channels for spec in specs),
        height_px=max(spec.height_px for spec in specs),
        width_px=max(spec.width_px for spec in specs),
    )


def _empty(member: Member) -> Detector:
    if member.kind == "fused":
        raise ConfigError("Members are fitted models.", f"{member.model_id}, a fused one", "Name its members instead.")
    return registry.create(member.kind, registry.configure(member.kind, member.config), member.spec, pretrained=False)


def assembled(members: Sequence[Member], detectors: Sequence[Detector], weights: Sequence[float]) -> Fused:
    """A fused detector with its own copy of fitted ones, on the CPU, in eval mode; its spreads are still 1.

    Args:
        members: what is told of each.
        detectors: as many, on the CPU.
        weights: of each, above 0, in sum 1.
    """
    spec = common_input([detector.spec for detector in detectors])
    fused = Fused(FusedConfig(members=tuple(members)), spec)
    for own, detector in zip(fused.members, detectors, strict=True):
        own.load_state_dict(detector.state_dict())
    fused.weight.copy_(torch.tensor(weights))
    return fused.eval()
