"""The command line: parse, call one verb, turn errors into exit codes.

0 done, 1 failed, 2 bad usage (before any work), 3 finished with too many failed images, 130 interrupted. The result goes
to stdout, the log to stderr. Verbs are imported when they are called: --help never imports torch or Ray.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from typer.core import TyperGroup

from ad_jobs.cli import show
from ad_jobs.cli.options import FitSpec, parse_settings, parse_size, parse_window, read_config, read_key
from ad_jobs.errors import RetroscanError
from cluster.errors import ClusterError, StorageError


class _Verbs(TyperGroup):
    """Runs a verb and turns what it raises on purpose into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RetroscanError as error:
            _complain(str(error))
            raise typer.Exit(error.exit_code) from error
        except ClusterError as error:
            _complain(str(error))
            raise typer.Exit(1) from error
        except StorageError as error:
            _complain(f"Storage failed: {error}. The same command again continues.")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            _complain("Interrupted. The same command again continues.")
            raise typer.Exit(130) from error


app = typer.Typer(
    name="retroscan",
    cls=_Verbs,
    help="Find the abnormal images of an archive, and where they are abnormal. Research and quality use, not for diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console()
log = logging.getLogger("retroscan")


class Heatmaps(StrEnum):
    flagged = "flagged"
    all = "all"
    none = "none"


class Identifiers(StrEnum):
    plain = "plain"
    hashed = "hashed"
    none = "none"


class Resize(StrEnum):
    stretch = "stretch"
    pad = "pad"


def _load_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's options the verb's defaults: a flag on the command line wins over them."""
    if path is not None:
        names = [
            parameter.name for parameter in context.command.params if parameter.name not in (None, "config", "help")
        ]
        context.default_map = {**(context.default_map or {}), **read_config(path, [n for n in names if n])}
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file with any of this verb's options; flags win.",
        callback=_load_config,
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
        help="Running Ray cluster of this machine or network (auto, host:port); embedded by default. From outside: submit.",
        metavar="ADDRESS",
    ),
]
Dashboard = Annotated[
    str | None,
    typer.Option(
        help="Cluster's dashboard, http://host:8265; by default RAY_ADDRESS, or this machine's.", metavar="URL"
    ),
]
SOURCE = "Folder, s3://bucket/prefix, manifest, or CSV/Parquet list with a column `image`."


def _example(text: str) -> str:
    return f"Example: [bold]{text}[/bold]"


@app.command(epilog=_example("retroscan demo --out demo"))
def demo(
    folder: Annotated[str, typer.Option("--out", help="Folder for the archive, the model and the run.")] = "demo",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the phantoms and of the fit.")] = 0,
    json_: Json = False,
    config: Config = None,
) -> None:
    """A phantom DICOM archive through every verb: index, fit, calibrate, scan, evaluate, report, verify."""
    del config
    from ad_jobs.demo import demo as run

    _print(run(folder, seed=seed), json_, show.demo_table)


@app.command(epilog=_example("retroscan detectors"))
def detectors(json_: Json = False) -> None:
    """The detectors: which to choose, what each needs, and where its weights come from."""
    from models.registry import DETECTORS

    rows = [
        {
            "detector": e.kind,
            "method": e.title,
            "source": e.source,
            "needs_anomalous": e.needs_anomalous,
            "weights": e.weights,
            "choose": e.choose,
        }
        for e in DETECTORS.values()
    ]
    _print(rows, json_, lambda value: "\n\n".join(map(show.detector_text, value)))


@app.command(epilog=_example("retroscan index s3://archive/2024 --out s3://results/manifest --headers"))
def index(
    source: Annotated[str, typer.Argument(help=SOURCE, show_default=False)],
    folder: Annotated[str, typer.Option("--out", help="Folder of the manifest, local or s3://.")],
    headers: Annotated[
        bool, typer.Option("--headers", help="Also read DICOM headers into columns for --where.")
    ] = False,
    json_: Json = False,
    config: Config = None,
) -> None:
    """List an archive once, into a manifest that scans refer to."""
    del config
    from ad_jobs.index import index as run

    info = run(source, folder, headers=headers)
    _print(
        info.model_dump(mode="json"), json_, lambda v: f"{v['objects']} objects in {folder} (digest {v['digest'][:12]})"
    )


@app.command(
    epilog=_example(
        "retroscan fit --detector mkd --normal ./normal --out ./model --size 128 --set backbone=efficientnet_lite0"
    )
)
def fit(
    detector: Annotated[str, typer.Option(help="One of `retroscan detectors`.")],
    normal: Annotated[str, typer.Option(help="Normal images. " + SOURCE)],
    folder: Annotated[str, typer.Option("--out", help="Folder of the model, local or s3://.")],
    anomalous: Annotated[
        str | None, typer.Option(help="Anomalous images, for a detector that learns from them.")
    ] = None,
    size: Annotated[str, typer.Option(help="Input size in pixels: 128, or heightxwidth.")] = "128",
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the images; the detector's own default otherwise.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, order and held-out images.")] = 0,
    window: Annotated[
        str, typer.Option(help="Grey window: dicom, percentile, or low,high in modality units.")
    ] = "dicom",
    resize: Annotated[
        Resize, typer.Option(help="Stretch to the input size, or keep the aspect and pad.")
    ] = Resize.stretch,
    workers: Annotated[int, typer.Option(min=1, help="Training workers.")] = 1,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Detector option key=value, repeatable.", metavar="KEY=VALUE")
    ] = None,
    dry_run: DryRun = False,
    address: Address = None,
    json_: Json = False,
    config: Config = None,
) -> None:
    """Fit a detector on normal images; a tenth is held out for its first calibration. Run again to continue."""
    del config
    options = parse_settings(settings or [])
    if epochs is not None:
        options["epochs"] = epochs
    size_px = parse_size(size)
    policy = {"window": parse_window(window), "resize": resize.value}
    spec = FitSpec(
        detector=detector,
        normal=normal,
        anomalous=anomalous,
        out=folder,
        size_px=size_px,
        options=options,
        policy=policy,
        seed=seed,
        workers=workers,
        address=address,
    )
    if dry_run:
        from ad_jobs.cli.dry_run import fit_outlook, fit_text

        _print(fit_outlook(spec), json_, fit_text)
        return
    from ad_jobs.fit import fit as run

    record = run(spec)
    _print(
        record,
        json_,
        lambda r: (
            f"model {r['model_id']} ({r['kind']}) in {folder}: fitted on {r['data']['n_fitted']} images, "
            f"{r['data']['n_held_out']} held out"
        ),
    )


@app.command(epilog=_example("retroscan calibrate ./model --normal ./held_out --max-fpr 0.01"))
def calibrate(
    model: Annotated[str, typer.Argument(help="Folder of the model.", show_default=False)],
    normal: Annotated[str, typer.Option(help="Held-out normal images. " + SOURCE)],
    anomalous: Annotated[str | None, typer.Option(help="Anomalous images, for --max-fnr.")] = None,
    max_fpr: Annotated[float | None, typer.Option(help="Share of normal images that may be flagged.")] = None,
    max_fnr: Annotated[float | None, typer.Option(help="Share of the anomalous images that may be missed.")] = None,
    margin: Annotated[float, typer.Option(help="With --max-fnr: lower the threshold by this share.")] = 0.05,
    json_: Json = False,
    config: Config = None,
) -> None:
    """Set a model's threshold and heatmap scale from held-out images."""
    del config
    from ad_jobs.calibrate import calibrate as run

    found = run(model, normal=normal, anomalous=anomalous, max_fpr=max_fpr, max_fnr=max_fnr, margin=margin)
    _print(found.model_dump(mode="json"), json_, show.calibration_text)


@app.command(
    epilog=_example("retroscan scan s3://archive/2024 --model ./model --out s3://results/run-1 --heatmaps flagged")
)
def scan(
    source: Annotated[str, typer.Argument(help=SOURCE, show_default=False)],
    model: Annotated[list[str], typer.Option(help="Folder of a fitted model.")],
    folder: Annotated[str, typer.Option("--out", help="Folder of the run, local or s3://. Run again to continue.")],
    where: Annotated[
        str | None, typer.Option(help="SQL condition over the manifest's columns, as \"modality = 'MR'\".")
    ] = None,
    heatmaps: Annotated[
        Heatmaps, typer.Option(help="Which to keep: flagged images and 1 % of the rest, all, or none.")
    ] = Heatmaps.flagged,
    identifiers: Annotated[
        Identifiers, typer.Option(help="DICOM UIDs in the table: plain, hashed (URIs too) or none.")
    ] = Identifiers.plain,
    identifiers_key: Annotated[
        Path | None, typer.Option(help="File with the key for --identifiers hashed.", metavar="FILE")
    ] = None,
    max_failed: Annotated[
        float, typer.Option(help="End the run, exit code 3, once a larger share of the objects has failed.")
    ] = 1.0,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Frames scored at once; does not change a score.")
    ] = None,
    amp: Annotated[
        bool,
        typer.Option("--amp", help="Reduced precision, on GPUs alone: faster; scores agree within a wider tolerance."),
    ] = False,
    dry_run: DryRun = False,
    address: Address = None,
    json_: Json = False,
    config: Config = None,
) -> None:
    """Score every object of an archive into a table, each exactly once. Run again to continue."""
    resolved = {
        "source": source,
        "model": model,
        "out": folder,
        "where": where,
        "heatmaps": heatmaps.value,
        "identifiers": identifiers.value,
        "max_failed": max_failed,
        "config": str(config) if config else None,
    }
    options: dict[str, Any] = {
        "where": where,
        "heatmaps": heatmaps.value,
        "identifiers": identifiers.value,
        "identifiers_key": read_key(identifiers_key),
        "batch_size": batch_size,
        "amp": amp,
        "address": address,
    }
    if dry_run:
        from ad_jobs.cli.dry_run import scan_outlook, scan_text

        _print(scan_outlook(source, model, folder, **options), json_, scan_text)
        return
    from ad_jobs.scan import scan as run

    record = run(source, model, folder, max_failed=max_failed, config=resolved, **options)
    _print(record.model_dump(mode="json"), json_, lambda r: show.balance_text(r, folder))


@app.command(epilog=_example("retroscan evaluate ./run --labels labels.csv"))
def evaluate(
    run: Annotated[str, typer.Argument(help="Folder of a finished run.", show_default=False)],
    labels: Annotated[str, typer.Option(help="CSV with image, anomalous[, mask, frame, group].")],
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    bootstrap: Annotated[int, typer.Option(min=0, help="Bootstrap replicates; 0 for no intervals.")] = 1000,
    json_: Json = False,
    config: Config = None,
) -> None:
    """Compare a run with labels: image and pixel metrics with intervals, into evaluation.json."""
    del config
    from ad_jobs.evaluate import evaluate as verb

    _print(verb(run, labels, seed=seed, bootstrap=bootstrap), json_, show.metrics_table)


@app.command(epilog=_example("retroscan report ./run"))
def report(
    run: Annotated[str, typer.Argument(help="Folder of a finished run.", show_default=False)],
    json_: Json = False,
    config: Config = None,
) -> None:
    """Write the run's report, one self-contained HTML page."""
    del config
    from ad_jobs.report import report as verb

    _print({"report": str(verb(run))}, json_, lambda v: v["report"])


@app.command(epilog=_example("retroscan verify ./run --sample 100"))
def verify(
    run: Annotated[str, typer.Argument(help="Folder of a finished run.", show_default=False)],
    sample: Annotated[int, typer.Option(min=0, help="Objects to fetch, hash and score again.")] = 100,
    seed: Annotated[int, typer.Option(help="Which objects are drawn.")] = 0,
    json_: Json = False,
    config: Config = None,
) -> None:
    """Check a run against its record: files, counts, model, and a sample scored again. Exit 1 on any difference."""
    del config
    from ad_jobs.verify import verify as verb

    found = verb(run, sample=sample, seed=seed)
    _print(
        {**found._asdict(), "ok": found.ok},
        json_,
        lambda v: (
            f"{'verified' if v['ok'] else 'DIFFERENT'}: run {v['run_id']}, {v['parts']} parts, {v['heatmap_parts']} heatmap "
            f"shards, {v['sampled']} objects scored again within {v['tolerance']:g}"
        ),
    )
    found.raise_if_different()


@app.command(epilog=_example("retroscan score ./model image.dcm other.png"))
def score(
    model: Annotated[str, typer.Argument(help="Folder of the model.", show_default=False)],
    images: Annotated[list[str], typer.Argument(help="Image files or s3:// objects.", show_default=False)],
    json_: Json = True,
    config: Config = None,
) -> None:
    """Score a few images here and now, always as JSON: the numbers a scan gives."""
    del config, json_
    from ad_jobs.score import score as verb

    print(json.dumps(verb(model, images), indent=2))


@app.command(
    context_settings={"allow_interspersed_args": False},  # options after the verb are the verb's
    epilog=_example(
        "retroscan submit --address http://head:8265 -- scan s3://archive --model s3://models/m --out s3://results/r"
    ),
)
def submit(
    context: typer.Context,
    words: Annotated[
        list[str] | None, typer.Argument(help="Verb and its arguments.", metavar="VERB ARGS...", show_default=False)
    ] = None,
    address: Dashboard = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME", help="Variable to send along, repeatable; its value is shown nowhere."),
    ] = None,
    submission_id: Annotated[
        str | None, typer.Option(help="Id of the job; by default it comes from VERB, ARGS and the code.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the id as soon as the cluster has the job.")] = False,
    json_: Json = False,
) -> None:
    """Run any verb as a Ray job on a cluster, and end with its exit code. Run again to follow it, or to continue."""
    from ad_jobs import submit as verb

    verbs = context.parent.command.commands  # type: ignore[union-attr]
    request = verb.parse(verbs, words or [], here=verb.on_this_machine(address))
    job, submitted = verb.submit(
        request, address=address, submission_id=submission_id, names=names or [], detach=detach
    )
    _print(
        {**verb.as_json(job), "submitted": submitted},
        json_,
        lambda v: v["id"] if detach else f"job {v['id']} {v['status'].lower()}, exit code {verb.exit_code(job)}",
    )
    if not detach:
        raise typer.Exit(verb.exit_code(job))


@app.command(epilog=_example("retroscan jobs --address http://head:8265"))
def jobs(
    address: Dashboard = None,
    stop: Annotated[str | None, typer.Option(help="End this job instead.", metavar="ID")] = None,
    json_: Json = False,
    config: Config = None,
) -> None:
    """The jobs of a cluster, the latest first."""
    del config
    from ad_jobs.submit import as_json
    from cluster.jobs.jobs import Jobs

    cluster = Jobs(address)
    if stop is None:
        _print([as_json(job) for job in cluster.list()], json_, show.jobs_text)
        return
    stopped = cluster.stop(stop)
    _print(
        {"id": stop, "stopped": stopped},
        json_,
        lambda v: f"job {v['id']} {'is being stopped' if v['stopped'] else 'was over already'}",
    )


@app.command(epilog=_example("retroscan doctor --bucket archive"))
def doctor(
    address: Dashboard = None,
    bucket: Annotated[str | None, typer.Option(help="Bucket in which to look whether S3 answers.")] = None,
    json_: Json = False,
    config: Config = None,
) -> None:
    """What is here and what is missing: packages, decoders, memory, disks, credentials, S3, Ray. Exit 1 if anything is."""
    del config
    from ad_jobs.doctor import MISSING
    from ad_jobs.doctor import doctor as verb

    checks = [check._asdict() for check in verb(address=address, bucket=bucket)]
    healthy = all(check["status"] != MISSING for check in checks)
    _print({"ok": healthy, "checks": checks}, json_, lambda v: show.checks_text(v["checks"]))
    if not healthy:
        raise typer.Exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script."""
    handler: logging.Handler
    if sys.stderr.isatty():
        console = Console(stderr=True)
        handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S")
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()  # whole lines, for files and grep
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log.setLevel(logging.INFO)
    app(arguments)


def _complain(text: str) -> None:
    print(f"retroscan: {text}", file=sys.stderr)


def _print(value: Any, as_json: bool, render: Callable[[Any], Any]) -> None:
    if as_json:
        print(json.dumps(value, indent=2))
        return
    shown = render(value)
    if isinstance(shown, str):
        print(shown)
    else:
        out.print(shown)


if __name__ == "__main__":
    main()
