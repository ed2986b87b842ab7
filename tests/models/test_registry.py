"""The table of detectors: every row leads to a class that keeps its word, and wrong names and options are explained."""

from __future__ import annotations

import subprocess
import sys

import pytest

from models import registry
from models.detector import Detector, DetectorConfig, InputSpec
from models.errors import ConfigError
from models.presets import PRESETS


@pytest.mark.parametrize("kind", registry.DETECTORS)
def test_a_row_leads_to_a_detector_and_its_configuration(kind: str):
    entry = registry.entry(kind)
    assert entry.kind == kind
    assert issubclass(entry.detector_class(), Detector)
    assert issubclass(entry.config_class(), DetectorConfig)
    assert registry.configure(kind, {}) == entry.config_class()()
    assert entry.channels in (1, 3)
    assert all((entry.title, entry.source, entry.weights, entry.choose))


@pytest.mark.parametrize("kind", registry.DETECTORS)
def test_a_configuration_survives_json(kind: str):
    config = registry.configure(kind, {"batch_size": 7})
    assert registry.configure(kind, config.model_dump(mode="json")) == config


@pytest.mark.parametrize("kind", registry.DETECTORS)
def test_every_detector_has_both_presets_and_its_defaults_are_the_fast_one(kind: str):
    assert PRESETS[kind].keys() == {"fast", "paper"}
    assert registry.preset(kind, "fast").options == {}
    for name in PRESETS[kind]:
        preset = registry.preset(kind, name)
        assert all(32 <= side <= 512 for side in preset.size_px)
        config = registry.configure(kind, dict(preset.options))
        assert {option: getattr(config, option) for option in preset.options} == preset.options
    assert registry.configure(kind, dict(registry.preset(kind, "paper").options)) != registry.configure(kind, {})


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"preset must be one of fast, paper\. Got: slow\. Choose with --preset fast"):
        registry.preset("mkd", "slow")


def test_an_unknown_detector_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"one of .*mkd.*\. Got: nonesuch\. See `retroscan detectors`"):
        registry.entry("nonesuch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 3}, r"mkd option 'epoch': .*Got: 3\. The options of mkd are batch_size, epochs, lr, backbone"),
        ({"epochs": 0}, r"mkd option 'epochs': .*greater than or equal to 1.* Got: 0\."),
        ({"epochs": "many"}, r"mkd option 'epochs': .*Got: 'many'\."),
        ({"map": "smoothgrad"}, r"mkd option 'map': .*'gradient' or 'cosine'.*Got: 'smoothgrad'\."),
        ({"layers": [2, "deep"]}, r"mkd option 'layers\.1': .*Got: 'deep'\."),
        ({"lr": -1}, r"mkd option 'lr': .*Got: -1\."),
    ],
)
def test_a_wrong_option_is_named_with_its_value(options: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        registry.configure("mkd", options)


@pytest.mark.parametrize("options", [{"epochs": 3}, {"lr": 3}])
def test_a_kind_without_passes_refuses_their_options(options: dict[str, object]):
    (option,) = options
    with pytest.raises(
        ConfigError, match=rf"padim has no passes to count, and so no {option}\. Got: {option}=3\. Leave it out"
    ):
        registry.configure("padim", options)


def test_a_configuration_cannot_be_changed():
    config = registry.configure("mkd", {})
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 3


def test_creating_without_pretrained_reads_no_weights():
    """A loaded model needs no other file: not even the one named in its configuration."""
    config = registry.configure("mkd", {"weights": "/nowhere/weights.pth"})
    spec = InputSpec(channels=3, height_px=32, width_px=32)
    detector = registry.create("mkd", config, spec, pretrained=False)
    assert detector.source_record()["sha256"] == ""


def test_listing_detectors_imports_no_networks():
    code = "import sys; import models.registry; print(*{'timm', 'torchvision', 'models.mkd'} & set(sys.modules))"
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert child.stdout.strip() == ""
