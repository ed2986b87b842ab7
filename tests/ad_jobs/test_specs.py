"""Specifications: what they refuse and in which words, and that every verb takes back what it was asked."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from typer.main import get_command
from typer.testing import CliRunner

from ad_jobs import run_specs, specs
from ad_jobs.cli import commands, options
from ad_jobs.cli.app import app
from ad_jobs.errors import UsageError
from ad_jobs.specs import CalibrateSpec, FitSpec, IndexSpec, ScanSpec, ScoreSpec, Spec, takes

FIT = {"detector": "padim", "normal": "a", "out": "m"}
SCAN = {"source": "a", "model": "m", "out": "r"}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"size": 20000}, ("--size", "20000", "16384")),
        ({"size": "0"}, ("--size", "'0'", "--size 128")),
        ({"tile": "0x5"}, ("--tile", "'0x5'", "--tile 128")),
        ({"overlap": 8}, ("Tiles overlap", "--overlap 8", "--tile")),
        ({"tile": 64, "overlap": 33}, ("at most half", "--tile 64 --overlap 33", "32 or less")),
        ({"tile": 64, "overlap": -1}, ("--overlap", "-1")),
        ({"tile": "64x65", "size": 64}, ("no larger", "--tile 64x65 --size 64", "leave --size out")),
        ({"window": "-inf,5"}, ("--window", "'-inf,5'", "finite")),
        ({"window": "5,5"}, ("--window", "low < high")),
        ({"window": [1, 2, 3]}, ("--window", "[1, 2, 3]")),
        ({"seed": -1}, ("--seed", "-1")),
        ({"workers": 0}, ("--workers", "0")),
        ({"epochs": 0}, ("--epochs", "0")),
        ({"preset": "slow"}, ("--preset", "slow", "fast")),
        ({"resize": "crop"}, ("--resize", "crop", "stretch")),
        ({"decode": "reduced", "window": "percentile"}, ("every pixel", "--decode reduced", "Leave --decode out")),
        ({"limits": {"max_bytes": -1}}, ("--limits max_bytes", "-1")),
        ({"limits": {"max_byte": 1}}, ("--limits max_byte", "known")),
        ({"nonsense": 1}, ("nonsense", "Options are those of the verb", "detector")),
        ({"normal": ""}, ("local path", "''")),
        ({"normal": "gs://b/x"}, ("gs://b/x", "s3://bucket/prefix")),
        ({"out": None}, ("local path", "None")),
    ],
)
def test_what_cannot_be_is_refused_with_rule_value_and_remedy(changed: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as error:
        FitSpec(**(FIT | changed))
    for word in words:
        assert word in str(error.value)
    assert error.value.exit_code == 2
    assert error.value.rule
    assert error.value.remedy


def test_what_is_left_out_is_asked_for() -> None:
    with pytest.raises(UsageError, match=r"--out is needed"):
        ScanSpec(source="a", model="m")  # type: ignore[call-arg]
    with pytest.raises(UsageError, match=r"--model takes one or more"):
        ScanSpec(source="a", model=[], out="r")


def test_places_become_absolute_and_one_model_is_a_list_of_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    spec = ScanSpec(source="a/../b/", model="m", out="s3://bucket/run/")
    # Spelling is as the storage has it; a specification is the same however it is spelled.
    assert spec == ScanSpec(source=str(tmp_path / "a/../b"), model=[str(tmp_path / "m")], out="s3://bucket/run/")
    assert spec.model == (str(tmp_path / "m"),)
    images = ScoreSpec(model="m", images=("x.png", "/y.png"))
    assert images.images == ("x.png", "/y.png"), "named as they were asked for"
    assert images.places == (str(tmp_path / "x.png"), "/y.png")


def test_a_specification_is_frozen() -> None:
    spec = IndexSpec(source="a", out="b")
    with pytest.raises(ValidationError, match="frozen"):
        spec.out = "c"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ({}, "one rate"),
        ({"max_fpr": 0.1, "max_fnr": 0.0, "anomalous": "b"}, "one rate"),
        ({"max_fpr": 1.0}, "--max-fpr"),
        ({"max_fnr": 0.0}, "no --anomalous"),
        ({"max_fpr": 0.1, "anomalous": "b"}, "normal images alone"),
        ({"max_fpr": 0.1, "margin": 1}, "--margin"),
    ],
)
def test_a_threshold_follows_from_one_rate(rates: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        CalibrateSpec(model="m", normal="a", **rates)


@takes(IndexSpec)
def asked(spec: IndexSpec) -> IndexSpec:
    """What was asked for."""
    return spec


def test_a_verb_takes_its_specification_or_the_fields_of_it() -> None:
    spec = IndexSpec(source="/a", out="/b", headers=True)
    assert asked(spec) == asked(source="/a", out="/b", headers=True) == spec
    assert asked("/a", "/b", headers=True) == spec  # type: ignore[call-overload]
    assert list(inspect.signature(asked).parameters)[:3] == ["source", "out", "headers"]
    assert asked.__doc__ == "What was asked for."
    with pytest.raises(UsageError, match="header"):
        asked(source="/a", out="/b", header=True)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="at most 7"):
        asked("/a", "/b", True, False, "plain", None, None, 8)  # type: ignore[call-overload]


# --- What is recorded can be handed back

# Of every verb: its specification, and options that differ from the defaults in every field of it.
ASKED: dict[str, tuple[type[Spec], dict[str, Any]]] = {
    "demo": (specs.DemoSpec, {"out": "d", "seed": 3}),
    "index": (
        specs.IndexSpec,
        {
            "source": "manifest:a",
            "out": "b",
            "headers": True,
            "demographics": True,
            "identifiers": "hashed",
            "identifiers_key": "key",
            "address": "auto",
        },
    ),
    "fit": (
        specs.FitSpec,
        {
            "detector": "ssm",
            "normal": "a",
            "out": "m",
            "anomalous": "b",
            "preset": "paper",
            "size": (256, 128),
            "tile": (64, 32),
            "overlap": 8,
            "epochs": 3,
            "seed": 2,
            "window": (-100.0, 300.5),
            "resize": "pad",
            "decode": "reduced",
            "workers": 2,
            "options": {"cells": [2, 4], "backbone": "vgg16", "blur": 2.5, "contrast": False, "weights": "a=b, c"},
            "limits": {"max_bytes": 5, "timeout_s": 1.5},
            "identifiers": "hashed",
            "identifiers_key": "/keys/a",
            "address": "auto",
        },
    ),
    "fuse": (
        specs.FuseSpec,
        {"model": ["m", "s3://b/n"], "out": "f", "normal": "manifest:a"}
        | {"identifiers": "hashed", "identifiers_key": "/keys/a"},
    ),
    "calibrate": (
        specs.CalibrateSpec,
        {"model": "m", "normal": "a", "anomalous": "b", "max_fnr": 0.0, "margin": 0.1, "accept": ("all",)}
        | {"identifiers": "hashed", "identifiers_key": "/keys/a"},
    ),
    "plan": (
        specs.PlanSpec,
        {
            "source": "a",
            "model": ["m", "n"],
            "where": "rows > 2",
            "accept": ("modality=CT",),
            "since": "s3://b/run-1",
            "retry": "failed",
            "heatmaps": "all",
            "limits": {"max_frames": 3},
            "nodes": 4,
            "cores": 16,
            "price_per_hour": 0.7,
            "sample": 20,
            "headers": 50,
            "seed": 1,
        },
    ),
    "scan": (
        specs.ScanSpec,
        {
            "source": "a",
            "model": ["m", "s3://b/m, 2"],
            "out": "r",
            "where": "modality = 'MR' AND uri LIKE '%,%'",
            "accept": ("modality=CT", "side_px"),
            "since": "s3://b/run-1",
            "retry": "failed",
            "heatmaps": "all",
            "identifiers": "hashed",
            "identifiers_key": Path("key"),
            "key": Path("signing"),
            "manifest_out": "m",
            "max_failed": 0.25,
            "limits": {"max_frames": 3},
            "batch_size": 4,
            "amp": True,
            "address": "auto",
        },
    ),
    "decide": (
        run_specs.DecideSpec,
        {
            "run": "r",
            "fdr": 0.2,
            "calibration": "current",
            "level": "study",
            "by": ("manufacturer", "modality"),
            "worklist": "l.csv",
        },
    ),
    "evaluate": (
        run_specs.EvaluateSpec,
        {
            "run": "r",
            "labels": "l.csv",
            "seed": 1,
            "bootstrap": 10,
            "decision": "d",
            "level": "study",
            "identifiers_key": Path("key"),
        },
    ),
    "compare": (
        run_specs.CompareSpec,
        {"run_a": "a", "run_b": "s3://b/r", "out": "o", "decision": ("c" * 12, "d" * 12)},
    ),
    "report": (run_specs.ReportSpec, {"run": "r", "top": 5, "decision": "d", "manifest": "m"}),
    "review": (
        run_specs.ReviewSpec,
        {"run": "r", "port": 8642, "reviewer": "Ada", "decision": "d", "blind": True, "seed": 1, "manifest": "m"},
    ),
    "verify": (
        run_specs.VerifySpec,
        {
            "run": "r",
            "sample": 7,
            "seed": 1,
            "full": True,
            "key": Path("signing"),
            "identifiers_key": Path("key"),
            "manifest": "manifest:m",
        },
    ),
    "score": (specs.ScoreSpec, {"model": "m", "images": ("x, y.png", "z.dcm"), "accept": ("colour",)}),
    "export": (
        run_specs.ExportSpec,
        {"run": "r", "out": "s3://b/o.csv", "format": "csv", "decision": "d", "top": 5, "manifest": "manifest:m"},
    ),
    "export-model": (specs.ExportModelSpec, {"model": "m", "out": "s3://b/m.onnx"}),
    "show": (specs.ShowSpec, {"folder": "m"}),
    "doctor": (specs.DoctorSpec, {"address": "http://127.0.0.1:8265", "bucket": "b"}),
}
# Fields that exclude one that is given above.
EXCLUDED = {
    # Of --detector auto, which leaves out others: see tests/ad_jobs/fitting/test_auto.py.
    ("fit", "budget"),
    ("calibrate", "max_fpr"),
    ("calibrate", "from_reviews"),
    ("decide", "max_fpr"),
    ("decide", "max_fnr"),
    ("decide", "top"),
    ("export", "all"),
}
# Fields without an option: they say how a caller's own process works, and nothing of what comes out.
WITHOUT_OPTION = {"keep_mib", "num_cpus", "chapter_objects"}


def spec_of(verb: str, *words: str, monkeypatch: pytest.MonkeyPatch) -> Spec:
    """The specification that the command line makes of these words."""
    found: list[Spec] = []

    class Seen(Exception):
        pass

    def given(kind: type[Spec], context: Any) -> Spec:
        found.append(real(kind, context))
        raise Seen

    real = options.given
    monkeypatch.setattr(options, "given", given)
    result = CliRunner().invoke(app, [verb, *words])
    monkeypatch.setattr(options, "given", real)
    assert isinstance(result.exception, Seen), result.output
    return found[0]


@pytest.mark.parametrize("verb", ASKED)
def test_what_a_verb_was_asked_can_be_handed_back_as_its_config(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, asked_for = ASKED[verb]
    spec = kind(**asked_for)
    for name, field in kind.model_fields.items():
        needed = name in WITHOUT_OPTION or (verb, name) in EXCLUDED
        assert needed or getattr(spec, name) != field.get_default(call_default_factory=True), f"{name} says nothing"
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(spec.config()))
    assert spec_of(verb, "--config", str(config), monkeypatch=monkeypatch) == spec


def test_every_verb_with_a_specification_is_tried_here() -> None:
    of_a_cluster = {"submit", "jobs"}
    assert set(get_command(app).commands) - of_a_cluster - {"detectors"} == set(ASKED)


@pytest.mark.parametrize("verb", ASKED)
def test_an_option_that_is_left_out_has_the_default_that_help_shows(verb: str) -> None:
    kind, _ = ASKED[verb]
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    for parameter in get_command(app).commands[verb].params:
        name = options.option_name(parameter)
        if name in options.NOT_OF_THE_VERB:
            continue
        assert name in fields, f"--{name} is no field of {kind.__name__}"
        if parameter.default is not None and not parameter.required:
            assert parameter.default == fields[name].default, name
    missing = set(fields) - {options.option_name(p) for p in get_command(app).commands[verb].params}
    assert missing <= WITHOUT_OPTION, f"no option sets {missing}"


def test_flags_win_over_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("source: /a\nmodel: /m\nout: /r\nmax-failed: 0.5\njson: true\nlimits: {max_frames: 3}\n")
    spec = spec_of("scan", "--config", str(config), "--out", "/other", monkeypatch=monkeypatch)
    assert spec == ScanSpec(source="/a", model=["/m"], out="/other", max_failed=0.5, limits={"max_frames": 3})
    assert commands.scan.__doc__


def refused_by(verb: str, *words: str) -> str:
    """What the command line says of words that it refuses with exit code 2."""
    result = CliRunner().invoke(app, [verb, *words])
    assert result.exit_code == 2, f"{result.output} {result.exception!r}"
    return result.output


@pytest.mark.parametrize("value", ["2024-13-45", "2024-01-01", "0x_", "&a [*a]", "[" * 3000, "!!binary aGk="])
@pytest.mark.parametrize("option", ["--set", "--limits"])
def test_a_value_that_is_no_plain_yaml_is_refused(option: str, value: str, tmp_path: Path) -> None:
    words = ("--detector", "padim", "--normal", str(tmp_path), "--out", str(tmp_path / "m"))
    assert f"value of {option} must be plain YAML" in refused_by("fit", *words, option, f"blur={value}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 2024-13-45", "--config must be YAML"),
        ("[" * 3000, "--config must be YAML"),
        ("seed: \xff", "--config must be YAML"),
        ("set: {blur: 2024-01-01}", "--config must be YAML"),
        ("seed: true", "Only a flag is true or false"),
        ("out: [a, b]", "A list stands only where an option repeats"),
        ("out: {a: b}", "A mapping stands only where"),
        ("run_id: abc", "take what stands in it under config"),
        ("- a", "--config must be a mapping"),
        ("", "--config must be a mapping"),
    ],
)
def test_a_config_that_is_none_is_refused(text: str, words: str, tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_bytes(text.encode("latin-1"))
    assert words in refused_by("fit", "--config", str(config))


def test_a_config_in_json_is_read_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = FitSpec(detector="padim", normal="/a", out="/m", size=(256, 128), options={"weights": "/tmp/\U0001f600.pt"})
    config = tmp_path / "job.json"
    config.write_text(json.dumps(spec.config()))
    assert spec_of("fit", "--config", str(config), monkeypatch=monkeypatch) == spec
    config.write_text(json.dumps(spec.config() | {"size": [256, 128], "epochs": None, "config": None}))
    assert spec_of("fit", "--config", str(config), monkeypatch=monkeypatch) == spec


def test_paths_may_stand_where_names_do(tmp_path: Path) -> None:
    spec = ScoreSpec(model=tmp_path, images=[tmp_path / "x.png"])  # type: ignore[arg-type, list-item]
    assert spec.images == spec.places == (str(tmp_path / "x.png"),)
    assert ScoreSpec(model="m", images="x.png").images == ("x.png",)
    with pytest.raises(UsageError, match="local path"):
        ScanSpec(source="a", model="m", out="s3://")


def test_the_folder_of_a_run_is_named_in_unicode() -> None:
    odd = os.fsdecode(b"/data/caf\xe9")
    assert ScanSpec(source=odd, model="/m", out="/r").source == "file:///data/caf%E9"
    with pytest.raises(UsageError, match=r"named in Unicode.*file:///data/caf%E9/run"):
        ScanSpec(source="/a", model="/m", out=f"{odd}/run")
