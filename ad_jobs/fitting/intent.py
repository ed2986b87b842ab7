"""What a fit resolves to, before anything is decoded: the detector's configuration, its input, and its pixel policy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ad_jobs.archive.identifiers import read_identifiers
from ad_jobs.archive.sources import SourceObject
from ad_jobs.errors import UsageError
from ad_jobs.images.policy import PixelPolicy
from ad_jobs.specs import FitSpec
from ad_jobs.values import size_text
from models import registry
from models.detector import Detector, DetectorConfig, InputSpec
from models.errors import Refusal

# Of a tile, where nobody says: what lies across the edge of one is whole in its neighbour if it is no larger.
OVERLAP_SHARE = 8


@dataclass(frozen=True)
class FitIntent:
    """A fit, resolved: what was asked for, and what follows from it."""

    spec: FitSpec
    config: DetectorConfig
    input: InputSpec
    policy: PixelPolicy

    @property
    def takes_grey(self) -> bool:
        """Whether the detector has one channel where no image is in colour."""
        return registry.entry(self.spec.detector).takes_grey

    def in_grey(self) -> FitIntent:
        """The same on one channel."""
        return FitIntent(
            self.spec,
            self.config,
            self.input.model_copy(update={"channels": 1}),
            self.policy.model_copy(update={"channels": 1}),
        )

    def detector(self) -> Detector:
        """A new detector, drawn by the fit's seed, with its pretrained weights.

        Raises:
            UsageError: weights that are missing, or a size that the detector cannot take.
        """
        torch.manual_seed(self.spec.seed)
        try:
            return registry.create(self.spec.detector, self.config, self.input)
        except Refusal as error:
            raise usage(error) from error

    def digest(self, normal: Sequence[SourceObject], anomalous: Sequence[SourceObject]) -> str:
        """16 hex digits over everything that decides the model: what is fitted, how, and on which objects.

        Raises:
            UsageError: the key of hashed identifiers cannot be read.
        """
        decides: dict[str, Any] = {
            "detector": self.spec.detector,
            "config": self.config.model_dump(mode="json"),
            "policy": self.policy.model_dump(mode="json"),
            "limits": self.spec.limits.model_dump(mode="json"),
            "seed": self.spec.seed,
            "normal": [[o.uri, o.bytes, o.etag, o.group] for o in normal],
            "anomalous": [[o.uri, o.bytes, o.etag] for o in anomalous],
        }
        # Fits of earlier versions keep their digests.
        if self.spec.identifiers != "none":
            decides["sites"] = read_identifiers(self.spec.identifiers, self.spec.identifiers_key).naming
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def resolve(spec: FitSpec) -> FitIntent:
    """What `spec` asks for: the preset's options, and over them those of `spec`.

    Raises:
        UsageError: no such detector or option, a value out of range, or images that the detector does not learn from.
    """
    options = dict(spec.options)
    if spec.epochs is not None:
        options["epochs"] = spec.epochs
    try:
        entry = registry.entry(spec.detector)
        preset = registry.preset(spec.detector, spec.preset)
        config = registry.configure(spec.detector, {**preset.options, **options})
    except Refusal as error:
        raise usage(error) from error
    if entry.needs_anomalous and spec.anomalous is None:
        raise UsageError(
            f"{spec.detector} learns from normal and anomalous images.",
            "no --anomalous",
            "Name some with --anomalous SOURCE, or choose another detector: `retroscan detectors`.",
        )
    if not entry.needs_anomalous and spec.anomalous is not None:
        raise UsageError(
            f"{spec.detector} is fitted on normal images alone.",
            f"--anomalous {spec.anomalous}",
            "Leave it out, or give it to `retroscan calibrate`.",
        )
    if entry.needs_anomalous and spec.tile is not None:
        raise UsageError(
            f"{spec.detector} learns from anomalous images, most tiles of which are normal.",
            f"--tile {size_text(spec.tile)}",
            "Leave --tile out, or choose another detector: `retroscan detectors`.",
        )
    height, width = spec.tile or spec.size or preset.size_px
    input_spec = InputSpec(
        channels=entry.channels, height_px=height, width_px=width, needs_anomalous=entry.needs_anomalous
    )
    policy = PixelPolicy.model_validate(
        {
            "channels": entry.channels,
            "height_px": height,
            "width_px": width,
            "window": spec.window,
            "resize": spec.resize,
            "decode": spec.decode,
            "tiles": None if spec.tile is None else {"overlap_px": _overlap_px(spec), "size_px": spec.size},
        }
    )
    return FitIntent(spec, config, input_spec, policy)


def _overlap_px(spec: FitSpec) -> int:
    assert spec.tile is not None
    return min(spec.tile) // OVERLAP_SHARE if spec.overlap is None else spec.overlap


def usage(error: Refusal) -> UsageError:
    """A detector's own refusal as a usage error."""
    return UsageError(error.rule, error.value, error.remedy)
