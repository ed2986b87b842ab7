"""What models refuse, and why a fit stops. Without torch, as models.record."""

from __future__ import annotations


class DetectorError(Exception):
    """Base of the errors a detector raises on purpose."""


class InputError(DetectorError, ValueError):
    """Images that break the input specification."""


class ConfigError(DetectorError, ValueError):
    """A detector configuration that cannot be built; the message names the option to change."""


class WeightsError(DetectorError):
    """Pretrained weights that are missing, or do not fit the network; the message names the ways to get them."""


class ArtifactError(DetectorError):
    """A model folder that is incomplete, damaged, or of another version."""


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
