"""The one table of detectors: kind -> class, configuration and what a user must know to choose.

Concrete detectors are imported when they are asked for, so that listing them does not import torch's networks.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from models.detector import Detector, DetectorConfig, InputSpec, TrainedConfig
from models.errors import ConfigError
from models.presets import PRESETS, Preset

# Where a pretrained network's weights come from, and others than the one that is there.
INSTALLED = "ImageNet: EfficientNet-Lite0 (Apache-2.0) installed with retroscan; {} by download or --set weights=FILE"


@dataclass(frozen=True)
class Entry:
    """One detector: where it lives, and its line in `retroscan detectors`."""

    kind: str
    module: str
    detector: str
    config: str
    title: str
    source: str
    channels: int = 3
    needs_anomalous: bool = False
    weights: str = "none needed"
    # One channel instead, where no image of a fit is in colour.
    takes_grey: bool = False
    # When to choose it: strengths, weaknesses and cost, as measured (benchmarks/results/quality.md).
    choose: str = ""

    def detector_class(self) -> type[Detector]:
        found: type[Detector] = getattr(importlib.import_module(self.module), self.detector)
        return found

    def config_class(self) -> type[DetectorConfig]:
        found: type[DetectorConfig] = getattr(importlib.import_module(self.module), self.config)
        return found


DETECTORS: dict[str, Entry] = {
    entry.kind: entry
    for entry in (
        Entry(
            kind="linear",
            module="models.linear",
            detector="Linear",
            config="LinearConfig",
            title="Linear masked inpainting",
            source="no paper's: self-supervised masking in closed form, by one Gaussian of normal pixels",
            takes_grey=True,
            choose="the first thing to try, and what every other is held against: fitted in seconds, scored in less "
            "time than an image takes to decode; for images that lie alike, where it found most on brains in our tests",
        ),
        Entry(
            kind="padim",
            module="models.padim",
            detector="PaDiM",
            config="PaDiMConfig",
            title="Gaussians of normal features at every position (PaDiM)",
            source="Defard et al., ICPR 2021 workshops, arXiv 2011.08785",
            weights=INSTALLED.format("others"),
            choose="what to try after linear: the features of a pretrained network; it found most on solar cells and "
            "phantoms in our tests, and is fitted within a minute or two; best where objects lie alike",
        ),
        Entry(
            kind="knn",
            module="models.knn",
            detector="KNN",
            config="KNNConfig",
            title="A memory of normal patches (PatchCore, AnomalyDINO)",
            source="Roth et al., CVPR 2022, arXiv 2106.08265; Damm et al., WACV 2025, arXiv 2405.14529",
            weights=INSTALLED.format("others"),
            choose="images that do not lie alike, if their parts look alike; fitted within a minute or two; takes "
            "any network's features, also those of vision transformers such as DINOv2",
        ),
        Entry(
            kind="ssm",
            module="models.ssm",
            detector="SSM",
            config="SSMConfig",
            title="Self-supervised masking",
            source="Huang et al., IEEE TMM 2023, arXiv 2205.06568",
            takes_grey=True,
            choose="images for which no pretrained network is wanted, beside linear, whose guesses it learns from "
            "nothing; minutes to fit, and slow to scan, as every image is painted in many times",
        ),
        Entry(
            kind="ssm_residual",
            module="models.ssm_residual",
            detector="ResidualSSM",
            config="ResidualSSMConfig",
            title="Self-supervised masking of what a linear guess leaves",
            source="no paper's: the network of ssm, begun from linear's answer",
            takes_grey=True,
            choose="to see what a network adds to linear, which it begins from and has not passed by more than chance "
            "in our tests; a minute or two to fit, and slow to scan, as every image is painted in many times",
        ),
        Entry(
            kind="pmad",
            module="models.pmad",
            detector="PMAD",
            config="PMADConfig",
            title="Partition memory and histogram errors (PMAD-style, re-derived)",
            source="Xing and Li, IEEE TCSVT 2023, arXiv 2209.12441",
            takes_grey=True,
            choose="images for which no pretrained network is wanted, if normal ones are alike and aligned; fitted "
            "within a minute or two, scored about as fast as linear",
        ),
        Entry(
            kind="autoencoder",
            module="models.autoencoder",
            detector="Autoencoder",
            config="AutoencoderConfig",
            title="Plain auto-encoder",
            source="no paper's: the network of ssm without masks",
            takes_grey=True,
            choose="a floor to hold ssm against: its network, without masks",
        ),
        Entry(
            kind="mkd",
            module="models.mkd",
            detector="MKD",
            config="MKDConfig",
            title="Multiresolution knowledge distillation",
            source="Salehi et al., CVPR 2021, arXiv 2011.11108",
            weights=INSTALLED.format("VGG-16"),
            choose="a second opinion beside padim, on images of any kind; minutes to fit",
        ),
        Entry(
            kind="cyclegan",
            module="models.cyclegan",
            detector="CycleGAN",
            config="CycleGANConfig",
            title="Cycle-GAN anomaly detection (supervised)",
            source="Bougaham, Delchevalerie et al., Neurocomputing 2024, arXiv 2302.05154",
            needs_anomalous=True,
            takes_grey=True,
            choose="archives of which some 30 or more anomalous images are known, and where a miss costs more than a "
            "false alarm: its threshold is set by them; for more of what is known and nothing else, a plain classifier "
            "on pretrained features serves better",
        ),
        Entry(
            kind="fyd",
            module="models.fyd",
            detector="FYD",
            config="FYDConfig",
            title="Focus your distribution (FYD-style, re-derived)",
            source="Zheng et al., ICME 2022, arXiv 2110.04538",
            weights=INSTALLED.format("others"),
            choose="objects with an outline that lie turned or shifted: there it found more than padim in our tests, "
            "and as much where they lie alike; a fit takes several times as long",
        ),
    )
}

# What is made of fitted models, and has no fit of its own.
FUSED = Entry(
    kind="fused",
    module="models.fused",
    detector="Fused",
    config="FusedConfig",
    title="Fitted models that score together",
    source="no paper's: a weighted mean of scores, each divided by its spread over held-out normals",
    choose="where a score may cost what several detectors do: see `retroscan fuse`",
)


def entry(kind: str) -> Entry:
    """The row of `kind`, a detector of the table or what is made of them.

    Raises:
        ConfigError: no such detector.
    """
    if kind == FUSED.kind:
        return FUSED
    if kind not in DETECTORS:
        raise ConfigError(
            f"detector must be one of {', '.join(DETECTORS)}.", kind, "See `retroscan detectors` for what each needs."
        )
    return DETECTORS[kind]


def preset(kind: str, name: str) -> Preset:
    """The size and options of `kind` at the scale `name`.

    Raises:
        ConfigError: no such detector or preset, or what is fitted by its members.
    """
    if kind == FUSED.kind:
        raise ConfigError(
            "A fit is of a detector that learns from images.",
            kind,
            "Fit its members, then `retroscan fuse MODEL MODEL --out MODEL`.",
        )
    presets = PRESETS[entry(kind).kind]
    if name not in presets:
        raise ConfigError(f"preset must be one of {', '.join(presets)}.", name, "Choose with --preset fast.")
    return presets[name]


def configure(kind: str, options: dict[str, Any]) -> DetectorConfig:
    """The validated configuration of `kind` from plain values.

    Raises:
        ConfigError: an unknown option or a value out of range; the message names the option.
    """
    config_class = entry(kind).config_class()
    try:
        return config_class.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        own = first.get("ctx", {}).get("error")
        if isinstance(own, ConfigError):
            raise own from error
        option = ".".join(str(part) for part in first["loc"])
        if option in TrainedConfig.model_fields and not issubclass(config_class, TrainedConfig):
            raise ConfigError(
                f"{kind} has no passes to count, and so no {option}.",
                f"{option}={first['input']}",
                f"Leave it out: {kind} goes over the images once for each of its statistics.",
            ) from error
        known = ", ".join(config_class.model_fields)
        raise ConfigError(
            f"{kind} option {option!r}: {first['msg']}.", repr(first["input"]), f"The options of {kind} are {known}."
        ) from error


def create(kind: str, config: DetectorConfig, spec: InputSpec, *, pretrained: bool = True) -> Detector:
    """A new detector; with `pretrained=False` its weights are left to a state dict that is loaded next."""
    # Every detector's constructor has this form; the abstract class leaves construction to its children.
    return entry(kind).detector_class()(config, spec, pretrained=pretrained)
