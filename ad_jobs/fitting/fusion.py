"""Several fitted detectors made one: who joins, and by which spreads, from held-out normals and synthetic defects.

`fused` is all that another verb needs: fitted members, and normal images that all of them held out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ad_jobs.errors import JobError, UsageError
from ad_jobs.fitting.synthetic import Judged, judge
from ad_jobs.images.model_input import to_input
from ad_jobs.images.policy import PixelPolicy
from ad_jobs.images.tiling import Tiling
from ad_jobs.values import tiles_text
from models.detector import Detector
from models.fused import Fused, Member, assembled

# By how much less AUROC is chance: few images are held out, and their defects are drawn.
CHANCE = 0.005
# Of a policy's fields those in which members may differ: the input follows from the largest.
_OF_THE_INPUT = ("channels", "height_px", "width_px")
# Frames scored at once for the spreads.
BATCH = 8

Pixels = NDArray[np.uint16]


class Fitted(NamedTuple):
    """A fitted detector to fuse, on the CPU: its model's place and id, the registry's name of its kind, its policy.

    `source` is what its record says of the pretrained network inside, which the fit alone knows.
    """

    place: str
    model_id: str
    kind: str
    policy: PixelPolicy
    detector: Detector
    source: dict[str, Any] | None = None


@dataclass(frozen=True)
class Fusion:
    """A fused detector and its pixel policy, who joined, and what its record tells of how it came to be."""

    detector: Fused
    policy: PixelPolicy
    members: tuple[Fitted, ...]
    # Plain values, of all that were offered.
    told: dict[str, Any]


def common_policy(members: Sequence[Fitted]) -> PixelPolicy:
    """The pixel policy from whose frames those of every member follow.

    Raises:
        UsageError: members whose images are prepared in different ways.
    """
    first, *others = members
    for member in others:
        for name in PixelPolicy.model_fields:
            one, other = getattr(first.policy, name), getattr(member.policy, name)
            if name == "tiles":
                one, other = (tiles_text(each.policy) or "none" for each in (first, member))
            if one != other and not (name in _OF_THE_INPUT and _resampled(name, first.policy)):
                raise UsageError(
                    "Members see one decoding: their images are prepared alike, but for their size where they are not "
                    "cut into tiles.",
                    f"{name} {one} in {first.place}, {other} in {member.place}",
                    f"Fit them with the same {name}.",
                )
    largest = {name: max(getattr(member.policy, name) for member in members) for name in _OF_THE_INPUT}
    return first.policy.model_copy(update=largest)


def _resampled(name: str, policy: PixelPolicy) -> bool:
    """Whether members may differ in this: a tile has a place in its image, and no other size follows from it."""
    return name == "channels" or policy.tiles is None


def fused(members: Sequence[Fitted], frames: Callable[[PixelPolicy], Iterable[Pixels]], *, seed: int = 0) -> Fusion:
    """The members that find more together than without one of them, as one detector; it is not calibrated yet.

    Args:
        members: fitted, at least two, by different model ids; none is a fused one.
        frames: gives normal frames that no member was fitted on, uint16 [c, H, W] under a policy, in the same order
            each time; called once under that of all members, and once under that of those who join.
        seed: draws the synthetic defects.

    Raises:
        UsageError: members whose images are prepared in different ways.
        JobError: no frame, a score that is not finite, or members that all score every normal image alike.
    """
    policy = common_policy(members)
    judged = judge([member.detector for member in members], frames(policy), seed=seed, tiles=policy.tiles)
    weights = chosen(judged)
    kept = [(member, weight) for member, weight in zip(members, weights, strict=True) if weight]
    joined = tuple(member for member, _ in kept)
    policy = common_policy(joined)
    told = [
        Member(
            kind=member.kind,
            config=member.detector.config.model_dump(mode="json"),
            spec=member.detector.spec,
            model_id=member.model_id,
            source=member.source,
        )
        for member in joined
    ]
    detector = assembled(told, [member.detector for member in joined], [weight for _, weight in kept])
    _set_spreads(detector, frames(policy) if policy.tiles is None else _cut(frames(policy), policy))
    return Fusion(detector, policy, joined, _told(members, judged, weights))


def chosen(judged: Judged) -> tuple[float, ...]:
    """The weight of each member in the order of `judged`, in sum 1: 0 of those left out, equal for the others.

    All begin together.
    As long as the mean of z-scores finds more synthetic defects without some member, by more than CHANCE, the one goes
    without which it finds most.
    A member that adds nothing to what they find stays: it may add to real defects, which are of other kinds.

    Raises:
        JobError: every member scores all normal images alike.
    """
    columns = range(judged.normal.shape[1])
    kept = [number for number in columns if judged.normal[:, number].std() > 0]
    if not kept:
        raise JobError("Every member scores all held-out normal images alike.", "Fit them again, or name others.")
    while len(kept) > 1:
        without = {number: _found(judged, [one for one in kept if one != number]) for number in kept}
        worst = max(without, key=without.__getitem__)
        if without[worst] <= _found(judged, kept) + CHANCE:
            break
        kept.remove(worst)
    return tuple(1 / len(kept) if number in kept else 0.0 for number in columns)


def _found(judged: Judged, members: Sequence[int]) -> float:
    """How much the mean of these members' z-scores finds: the mean of its AUROC over the kinds of defects."""
    weights = [float(number in members) for number in range(judged.normal.shape[1])]
    return float(judged.fused(weights).found()[0])


def _cut(frames: Iterable[Pixels], policy: PixelPolicy) -> Iterator[Pixels]:
    """All tiles of the frames."""
    assert policy.tiles is not None
    tiling = Tiling(*policy.size_px, policy.tiles.overlap_px)
    for frame in frames:
        yield from (tiling.cut(frame, corner) for corner in tiling.corners(*frame.shape[-2:]))


def _set_spreads(detector: Fused, frames: Iterable[Pixels]) -> None:
    """Take each member's spreads from normal frames: of its scores, and of all of its heatmaps' pixels together."""
    members = len(detector.members)
    of_score, of_heatmap = ([_Moments() for _ in range(members)] for _ in range(2))
    channels, waiting = detector.spec.channels, iter(frames)
    while batch := list(islice(waiting, BATCH)):
        images = torch.from_numpy(np.stack([to_input(frame, channels) for frame in batch]))
        for number, scores in enumerate(detector.scores(images)):
            of_score[number].add(scores.image)
            of_heatmap[number].add(scores.heatmap)
    for buffer, found in ((detector.score_spread, of_score), (detector.heatmap_spread, of_heatmap)):
        buffer.copy_(torch.tensor([one.spread for one in found]))
    if not all(bool((spread > 0).all()) for spread in (detector.score_spread, detector.heatmap_spread)):
        raise JobError("A member scores all held-out normal images alike.", "Leave it out, or fit it again.")


def _told(members: Sequence[Fitted], judged: Judged, weights: Sequence[float]) -> dict[str, Any]:
    """What a record tells of a fusion."""
    auroc, found = judged.auroc(), judged.found()
    together = judged.fused(weights)
    return {
        "normals": len(judged.normal),
        "kinds": list(judged.kinds),
        "found": round(float(together.found()[0]), 4),
        "auroc": _by_kind(judged, together.auroc()[:, 0]),
        "members": [
            {
                "uri": member.place,
                "kind": member.kind,
                "model_id": member.model_id,
                "found": round(float(found[number]), 4),
                "auroc": _by_kind(judged, auroc[:, number]),
                "weight": weights[number],
                "why": None if weights[number] else _why(judged, weights, number),
            }
            for number, member in enumerate(members)
        ],
    }


def _why(judged: Judged, weights: Sequence[float], number: int) -> str:
    """Why a member was left out."""
    if not judged.normal[:, number].std() > 0:
        return "as it scores all held-out normal images alike"
    kept = [other for other, weight in enumerate(weights) if weight]
    without, beside = _found(judged, kept), _found(judged, [*kept, number])
    return f"as those who joined find {beside:.3f} with it and {without:.3f} without"


def _by_kind(judged: Judged, auroc: NDArray[np.float64]) -> dict[str, float]:
    return {kind: round(float(value), 4) for kind, value in zip(judged.kinds, auroc, strict=True)}


class _Moments:
    """Mean and spread of numbers that come in parts, in bounded memory (Chan et al., 1979)."""

    def __init__(self) -> None:
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    def add(self, values: torch.Tensor) -> None:
        """Count in a part."""
        part = values.detach().double()
        count, mean = part.numel(), float(part.mean())
        total, away = self._count + count, mean - self._mean
        self._squares += float((part - mean).square().sum()) + away**2 * self._count * count / total
        self._mean += away * count / total
        self._count = total

    @property
    def spread(self) -> float:
        """The standard deviation."""
        return math.sqrt(self._squares / self._count) if self._count else 0.0
