"""Pretrained feature extractors: frozen ImageNet networks, one family a file, and where their weights come from."""

from models.backbones.backbone import Backbone, Tap
from models.backbones.lite0 import LITE0
from models.backbones.norms import NORMS
from models.backbones.stages import Stages

__all__ = ["LITE0", "NORMS", "Backbone", "Stages", "Tap"]
