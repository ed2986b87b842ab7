"""The candidates of `fit --detector auto`: which kinds, in which order, and what each is expected to take.

They are those that learn from normal images alone and found most on some data of benchmarks/results/quality.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from ad_jobs.fitting.intent import FitIntent, resolve
from ad_jobs.specs import FitSpec
from cluster import storage

# Seconds to fit a thousand images on a core, by presets: of `fast` as measured (benchmarks/results/quality.md), of
# `paper` by the pixels, passes and sizes of networks that it has more of. Only their order counts before one is fitted.
COSTS_S: dict[str, dict[str, float]] = {
    "linear": {"fast": 30, "paper": 500},
    "padim": {"fast": 80, "paper": 5_000},
    "knn": {"fast": 100, "paper": 5_000},
    "pmad": {"fast": 110, "paper": 10_000},
    "fyd": {"fast": 600, "paper": 400_000},
    "mkd": {"fast": 850, "paper": 200_000},
    "ssm": {"fast": 1_200, "paper": 50_000},
}
# What a fit takes however few its images: its workers begin, and import.
START_S = 20.0
DEFAULT_BUDGET_S = 600.0
# Below a model's `fit`, where its checkpoints lie.
FOLDER = "candidates"


@dataclass(frozen=True)
class Candidate:
    """One fit of those to choose from; `expected_s` before any was measured."""

    intent: FitIntent
    expected_s: float

    @property
    def spec(self) -> FitSpec:
        return self.intent.spec

    @property
    def kind(self) -> str:
        return self.intent.spec.detector

    @property
    def pixels(self) -> int:
        """Of an input."""
        return self.intent.policy.height_px * self.intent.policy.width_px


def candidates(spec: FitSpec, images: int) -> list[Candidate]:
    """What `fit --detector auto` tries on so many images, the cheapest first; each a full fit with a folder of its own.

    Raises:
        UsageError: a size or a preset that none can take.
    """
    found = []
    for kind, costs in COSTS_S.items():
        out = storage.join(spec.out, "fit", FOLDER, kind)
        intent = resolve(spec.model_copy(update={"detector": kind, "out": out, "budget": None}))
        preset = resolve(intent.spec.model_copy(update={"size": None})).policy
        larger = intent.policy.height_px * intent.policy.width_px / (preset.height_px * preset.width_px)
        found.append(Candidate(intent, START_S + costs[spec.preset] * larger * images / 1000))
    return sorted(found, key=lambda one: one.expected_s)


class Budget:
    """Time to fit in: what is left of it, and what it allows, as this machine is found to be."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        # Of the candidates that were fitted; and of whatever else.
        self._expected = self._taken = self._lost = 0.0

    def took(self, candidate: Candidate, seconds: float) -> None:
        """Count in what it took to fit and judge a candidate."""
        self._expected += candidate.expected_s
        self._taken += seconds

    def lost(self, seconds: float) -> None:
        """Count in time that says nothing of the machine: of a candidate that failed, or was fitted before."""
        self._lost += seconds

    @property
    def left_s(self) -> float:
        """Of the budget; below 0 where it is overdrawn."""
        return self.seconds - self._taken - self._lost

    def expected_s(self, candidate: Candidate) -> float:
        """What a candidate is expected to take, if this machine is to the others as it was to those before."""
        return candidate.expected_s * (self._taken / self._expected if self._expected else 1.0)

    def allows(self, candidate: Candidate) -> bool:
        """Whether it may be started: the first one always, or there would be no model."""
        return not self._expected or self.expected_s(candidate) <= self.left_s


def outlook(listed: list[Candidate], budget_s: float) -> list[tuple[Candidate, bool]]:
    """Each candidate, and whether it would be started if all took what they are expected to."""
    budget, found = Budget(budget_s), []
    for one in listed:
        starts = budget.allows(one)
        found.append((one, starts))
        if starts:
            budget.took(one, one.expected_s)
    return found
