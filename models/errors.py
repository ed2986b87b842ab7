"""What models refuse, and why a fit stops. Without torch, as models.record.

    DetectorError
    ├── Refusal           a rule, the value that breaks it, and the remedy
    │   ├── InputError    images that break the input specification
    │   ├── ConfigError   a configuration that cannot be built
    │   ├── WeightsError  pretrained weights that are missing or do not fit
    │   ├── ArtifactError a model folder that is incomplete, damaged, or of another version
    │   └── GraphError    a detector that is no single graph
    └── NonFiniteLoss     a fit that stops before its update

Every class hands all of its arguments to ``Exception.__init__`` and formats in ``__str__``: it survives pickling.
"""

from __future__ import annotations


class DetectorError(Exception):
    """Base of the errors a detector raises on purpose."""


class Refusal(DetectorError):
    """What cannot be done as asked: the rule it breaks, the value given, and the remedy, a sentence each."""

    def __init__(self, rule: str, value: object, remedy: str) -> None:
        super().__init__(rule, value, remedy)
        self.rule = rule
        self.value = value
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.rule} Got: {self.value}. {self.remedy}"


class InputError(Refusal, ValueError):
    """Images that break the input specification."""


class ConfigError(Refusal, ValueError):
    """A detector configuration that cannot be built; the remedy names the option to change."""


class WeightsError(Refusal):
    """Pretrained weights that are missing, or do not fit the network; the remedy names the ways to get them."""


class ArtifactError(Refusal):
    """A model folder that is incomplete, damaged, or of another version."""


class GraphError(Refusal):
    """A detector whose score is no single graph that another engine could run."""


class NonFiniteLoss(DetectorError):
    """A loss became NaN or infinite; raised before the optimizer's update, so the weights are still finite."""

    def __init__(self, phase: str, losses: str) -> None:
        super().__init__(phase, losses)
        self.phase = phase
        self.losses = losses

    def __str__(self) -> str:
        return (
            f"The loss of phase {self.phase!r} is not finite ({self.losses}); stopped before the update. "
            "Lower the learning rate (--set lr=...) or look for constant or non-finite training images."
        )
