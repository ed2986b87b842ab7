"""What the tests of MKD share: detectors of either source, and the same networks under other options."""

from __future__ import annotations

from typing import Any

from models import registry
from models.detector import InputSpec
from models.mkd import MKD

SIZE_PX = (32, 64)
# Float32 sums of some hundred terms in another order.
ROUND_OFF = 2e-5

LITE0 = {"backbone": "efficientnet_lite0"}
VGG = {"backbone": "vgg16", "weights": "random"}


def build(size_px: tuple[int, int] = SIZE_PX, channels: int = 3, **options: Any) -> MKD:
    spec = InputSpec(channels=channels, height_px=size_px[0], width_px=size_px[1])
    detector = registry.create("mkd", registry.configure("mkd", options), spec)
    assert isinstance(detector, MKD)
    return detector.eval()


def with_options(detector: MKD, **changed: Any) -> MKD:
    """The same networks under other options of scoring or fitting."""
    detector.config = detector.config.model_copy(update=changed)
    return detector
