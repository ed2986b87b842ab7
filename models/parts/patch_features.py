"""What a frozen network sees of every patch of an image: the options of detectors that compare such features.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.backbones import Backbone, Stages
from models.backbones.stages import Whole, tapped
from models.detector import DetectorConfig, InputSpec


class PatchFeaturesConfig(DetectorConfig):
    """Of which network, and of how large patches; the defaults suit EfficientNet-Lite0 at 128 px on CPU."""

    batch_size: int = Field(default=16, ge=1)
    backbone: str = "efficientnet_lite0"
    # See models/backbones/weights.py.
    weights: str = "auto"
    norm: str = "native"
    # Stages, as halvings of the input; of a vision transformer its blocks, counted from 1.
    layers: tuple[int, ...] = (3, 4, 5)
    # Features are averaged over patch x patch positions.
    patch: int = Field(default=3, ge=1)
    # Sigma in pixels at 128 px, scaled with the image's height.
    blur: float = Field(default=4.0, ge=0)

    def network(self, spec: InputSpec, *, pretrained: bool) -> Stages | Whole:
        """The network with its taps, for images of this size."""
        source = Backbone(self.backbone, self.layers, self.weights if pretrained else None, self.norm)
        return tapped(source, spec.size_px)


def average_patches(map_BCHW: Tensor, patch: int) -> Tensor:
    """Each position's mean over patch x patch positions around it, as far as they lie within the map."""
    if patch == 1:
        return map_BCHW
    averaged = F.avg_pool2d(map_BCHW, patch, 1, patch // 2, count_include_pad=False)
    return averaged[..., : map_BCHW.shape[2], : map_BCHW.shape[3]]
