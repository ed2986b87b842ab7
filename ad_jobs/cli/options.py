"""The options of the command line, each once, and how they become a specification: flags over `--config`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import yaml

from ad_jobs.errors import UsageError
from ad_jobs.specs import Spec

AnySpec = TypeVar("AnySpec", bound=Spec)
# One of click, which some versions of typer carry inside them.
Parameter = Any

SOURCE = "Folder, s3://bucket/prefix, manifest, or CSV/Parquet list with a column `image`."
# Options of the command line alone: they say how a result is shown, and belong to no specification.
NOT_OF_THE_VERB = frozenset({"config", "json", "dry_run", "help", "oracle"})


class Level(StrEnum):
    image = "image"
    series = "series"
    study = "study"


class ExportFormat(StrEnum):
    csv = "csv"
    xlsx = "xlsx"
    png = "png"
    dicom_sc = "dicom-sc"
    dicom_pm = "dicom-pm"
    dicom_sr = "dicom-sr"
    dicom_ko = "dicom-ko"


class Heatmaps(StrEnum):
    flagged = "flagged"
    all = "all"
    none = "none"


class Identifiers(StrEnum):
    plain = "plain"
    hashed = "hashed"
    none = "none"


class Retry(StrEnum):
    failed = "failed"


class Resize(StrEnum):
    stretch = "stretch"
    pad = "pad"


class Decode(StrEnum):
    full = "full"
    reduced = "reduced"


class Preset(StrEnum):
    fast = "fast"
    paper = "paper"


def option_name(parameter: Parameter) -> str:
    """A parameter's name as a user knows it, with _ between words: of its long option, or of the argument."""
    long = [opt for opt in parameter.opts if opt.startswith("--")]
    return (long[0].removeprefix("--") if long else str(parameter.name)).replace("-", "_")


def given(spec: type[AnySpec], context: typer.Context) -> AnySpec:
    """The specification of what the command line and `--config` say.

    What they leave out has the specification's default.

    Raises:
        UsageError: a value that breaks a rule.
    """
    options: dict[str, Any] = {}
    for parameter in context.command.params:
        name = option_name(parameter)
        source = context.get_parameter_source(str(parameter.name))
        if name in NOT_OF_THE_VERB or source is None or source.name == "DEFAULT":
            continue
        value = context.params[str(parameter.name)]
        options[name] = pairs(f"--{name}", value) if name in PAIRS else value
    return spec(**options)


# Options that are given as KEY=VALUE, repeatable.
PAIRS = ("set", "limits")
# Options of two numbers, and what stands between them on the command line.
JOINED = {"window": ",", "size": "x", "tile": "x"}
# By which a record is known that was given whole.
RECORD_KEYS = ("version", "run_id", "format", "model_id")


def pairs(option: str, values: list[str]) -> dict[str, Any]:
    """`key=value` texts as a mapping; each value is read as YAML (numbers, true, [2, 3])."""
    settings: dict[str, Any] = {}
    for pair in values:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} takes key=value.", repr(pair), f"Write for example {option} key=3.")
        try:
            settings[key] = _read_yaml(value)
        except ValueError as error:
            raise UsageError(
                f"The value of {option} must be plain YAML.",
                f"{_short(pair)} ({error})",
                "Quote it in the shell, as in --set 'layers=[2,3]'.",
            ) from error
    return settings


def _read_yaml(text: str) -> Any:
    """What the text says: numbers, texts, true and false, lists and mappings of them.

    Raises:
        ValueError: it is no YAML, or says something else, such as a date; the text says why.
    """
    try:
        found = yaml.safe_load(text)
        # A date, bytes or a list within itself can be recorded nowhere.
        json.dumps(found)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    return found


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:200] + "...")


def read_config(path: Path, parameters: list[Parameter]) -> dict[str, Any]:
    """The options in a YAML mapping, as the parameters of a verb take them.

    Names are the options' own, with - or _ between words; a list or a mapping may stand where an option repeats, and a
    single value where a list may.

    Raises:
        UsageError: no such file, no mapping, or an option the verb does not have.
    """
    known = {option_name(parameter): parameter for parameter in parameters}
    known = {name: parameter for name, parameter in known.items() if name not in ("config", "help")}
    values: dict[str, Any] = {}
    for key, value in _read_mapping(path).items():
        name = str(key).replace("-", "_")
        if value is None:
            continue
        if name not in known:
            remedy = f"This verb's are: {', '.join(sorted(known))}."
            if key in RECORD_KEYS:
                remedy += " A record (run.json, detector.json) is none: take what stands in it under config or fit."
            raise UsageError("--config holds options of the verb.", f"{key!r} in {path}", remedy)
        values[str(known[name].name)] = _as_given(known[name], value, f"{key!r} in {path}")
    return values


def _read_mapping(path: Path) -> dict[Any, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        # What JSON escapes, YAML reads otherwise.
        content = json.loads(text) if text.lstrip().startswith("{") and path.suffix == ".json" else _read_yaml(text)
    except OSError as error:
        raise UsageError(
            "--config must name a readable file.", f"{path} ({error.strerror})", "Check the path."
        ) from error
    except ValueError as error:
        raise UsageError(
            "--config must be YAML in UTF-8.",
            f"{path}: {str(error).splitlines()[0]}",
            "Write one `option: value` a line.",
        ) from error
    if not isinstance(content, dict):
        raise UsageError(
            "--config must be a mapping of options.",
            f"{path}: {type(content).__name__}",
            "Write one `option: value` a line.",
        )
    return content


def _as_given(parameter: Parameter, value: Any, where: str) -> Any:
    """A value of a configuration file as the command line would have given it."""
    if isinstance(value, Mapping):
        if option_name(parameter) not in PAIRS:
            raise UsageError("A mapping stands only where an option takes KEY=VALUE.", where, "Write a single value.")
        # JSON is YAML, as which the value is read again; what JSON escapes, YAML reads otherwise.
        return [f"{key}={json.dumps(one, ensure_ascii=False)}" for key, one in value.items()]
    several = parameter.nargs == -1 or getattr(parameter, "multiple", False)
    if isinstance(value, bool) and not getattr(parameter, "is_flag", False):
        raise UsageError("Only a flag is true or false.", f"{where}: {value}", "Write a number, or a text in quotes.")
    if isinstance(value, list):
        texts = [one if isinstance(one, str) else json.dumps(one) for one in value]
        if several:
            return texts
        if option_name(parameter) not in JOINED:
            raise UsageError("A list stands only where an option repeats.", where, "Write a single value.")
        return JOINED[option_name(parameter)].join(texts)
    return [value] if several else value


def load_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's options the verb's defaults: a flag on the command line wins over them."""
    if path is not None:
        context.default_map = {**(context.default_map or {}), **read_config(path, context.command.params)}
    return path


def example(text: str) -> str:
    """The last line of a verb's help."""
    return f"Example: [bold]{text}[/bold]"


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file with any of this verb's options; flags win.",
        callback=load_config,
        is_eager=True,
        metavar="FILE",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show how the cluster would be divided and what is left to do; write nothing.")
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Running Ray cluster of this machine or network (auto, host:port); embedded by default. "
        "From outside: submit.",
        metavar="ADDRESS",
    ),
]
Dashboard = Annotated[
    str | None,
    typer.Option(
        help="Cluster's dashboard, http://host:8265; by default RAY_ADDRESS, or this machine's.", metavar="URL"
    ),
]
SigningKey = Annotated[
    Path | None,
    typer.Option(help="File with the key that run.json is signed with; or RETROSCAN_SIGNING_KEY.", metavar="FILE"),
]
IdentifiersKey = Annotated[
    Path | None, typer.Option(help="File with the key for --identifiers hashed.", metavar="FILE")
]
SiteNames = Annotated[
    Identifiers, typer.Option(help="Institutions in the calibration, for `decide --by site`: plain, hashed or none.")
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--limits",
        help="What one object may cost, repeatable: max_bytes, max_pixels, max_frames, max_input_pixels, "
        "max_memory_bytes, timeout_s.",
        metavar="KEY=VALUE",
    ),
]
Where = Annotated[str | None, typer.Option(help="SQL condition over the manifest's columns, as \"modality = 'MR'\".")]
Since = Annotated[
    str | None, typer.Option(help="A finished run: what it has, or a run before it, is left out unless it changed.")
]
Accept = Annotated[
    list[str] | None,
    typer.Option(
        "--accept",
        help="Score what the model's fit saw none of, repeatable: modality=CT, spacing_mm, all.",
        metavar="FIELD[=VALUE]",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")]
Source = Annotated[str, typer.Argument(help=SOURCE, show_default=False)]
Model = Annotated[str, typer.Argument(help="Folder of the model.", show_default=False)]
Run = Annotated[str, typer.Argument(help="Folder of a finished run.", show_default=False)]
