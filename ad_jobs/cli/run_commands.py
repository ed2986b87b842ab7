"""One function a verb that is asked of a finished run: as in commands.py, whose verbs make models and runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ad_jobs import run_specs
from ad_jobs.cli import options as o
from ad_jobs.cli import show


def decide(
    context: typer.Context,
    run: o.Run,
    max_fpr: Annotated[float | None, typer.Option(help="Share of normal images that may be flagged.")] = None,
    fdr: Annotated[float | None, typer.Option(help="Share of the flagged that may be expected to be normal.")] = None,
    max_fnr: Annotated[float | None, typer.Option(help="Share of the anomalous images that may be missed.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="The highest scores, so many of each model.")] = None,
    level: Annotated[
        o.Level, typer.Option(help="Flag single frames, or series or studies (folders, without these) as a whole.")
    ] = o.Level.image,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Judge each group by its own held-out normals: manufacturer, site,...", metavar="COLUMN"),
    ] = None,
    worklist: Annotated[
        str | None,
        typer.Option(help="CSV or XLSX to write what is flagged to, the most suspicious first.", metavar="FILE.csv"),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="Whose held-out scores to judge by: an id, or `current`; the run's own.", metavar="ID"),
    ] = None,
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """Flag a run's rows by another rule, without a new scan: a table in RUN/decisions, and what it promises."""
    spec = o.given(run_specs.DecideSpec, context)
    from ad_jobs.decide import decide as verb
    from ad_jobs.deciding.text import decision_text

    show.result(verb(spec), json_, decision_text)


def evaluate(
    context: typer.Context,
    run: o.Run,
    labels: Annotated[
        str, typer.Option(help="CSV with image, anomalous[, mask, frame, group]; or `reviews`: verdicts of reviewers.")
    ],
    seed: o.Seed = 0,
    bootstrap: Annotated[int, typer.Option(min=0, help="Bootstrap replicates; 0 for no intervals.")] = 1000,
    decision: Annotated[
        str | None, typer.Option(help="Judge what a decision flagged; by default what the run did.", metavar="ID")
    ] = None,
    level: Annotated[
        o.Level, typer.Option(help="What counts as one: images, or series or studies as a whole.")
    ] = o.Level.image,
    identifiers_key: Annotated[
        Path | None,
        typer.Option(help="File with the key of hashed identifiers: labels name images as they are.", metavar="FILE"),
    ] = None,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Also show what thresholds chosen by the labels would have reached.")
    ] = False,
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """Compare a run with labels: what it found and missed, and metrics with intervals, into evaluation.json."""
    spec = o.given(run_specs.EvaluateSpec, context)
    from ad_jobs.cli.show_evaluation import evaluation_view
    from ad_jobs.evaluate import evaluate as verb

    show.result(verb(spec), json_, lambda value: evaluation_view(value, oracle=oracle))


def report(
    context: typer.Context,
    run: o.Run,
    top: Annotated[
        int, typer.Option(min=1, max=1000, help="Pictures of so many frames, the highest-scored of each model.")
    ] = 24,
    decision: Annotated[
        str | None, typer.Option(help="Show what a decision flagged; by default what the run did.", metavar="ID")
    ] = None,
    manifest: Annotated[
        str | None,
        typer.Option(help="Manifest of a run with hashed identifiers: its images are shown in the page, too."),
    ] = None,
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """Write the run's report, one self-contained HTML page; that of a decision is a page of its own."""
    spec = o.given(run_specs.ReportSpec, context)
    from ad_jobs.report import report as verb

    show.result({"report": str(verb(spec))}, json_, lambda v: v["report"])


def review(
    context: typer.Context,
    run: o.Run,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of this machine; 0 takes one that is free.")] = 0,
    reviewer: Annotated[
        str | None, typer.Option(help="Whose verdicts are noted; by default this machine's user.", metavar="NAME")
    ] = None,
    decision: Annotated[
        str | None, typer.Option(help="Show what a decision flagged, by its ranks; by default the run's.", metavar="ID")
    ] = None,
    blind: Annotated[
        bool,
        typer.Option(
            "--blind", help="Show neither scores, heatmaps nor others' verdicts before one's own, in no order."
        ),
    ] = False,
    seed: o.Seed = 0,
    manifest: Annotated[
        str | None, typer.Option(help="Manifest the run was made from, where it does not lie where it did.")
    ] = None,
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """A page of this machine to look at a run's images and to note verdicts, in RUN/reviews.

    Ctrl-C ends it, with exit code 130.
    """
    spec = o.given(run_specs.ReviewSpec, context)
    from ad_jobs.review import review as verb

    def told(address: str) -> None:
        show.result({"address": address}, json_, lambda v: v["address"])
        # Who reads it from a pipe must not wait for the end.
        sys.stdout.flush()

    verb(spec).serve(told)
    # Nothing else ends it.
    raise typer.Exit(130)


def compare(
    context: typer.Context,
    run_a: Annotated[str, typer.Argument(help="Folder of a finished run.", show_default=False)],
    run_b: Annotated[
        str | None, typer.Argument(help="Folder of the run to compare with it; RUN_A itself.", show_default=False)
    ] = None,
    decision: Annotated[
        list[str] | None,
        typer.Option(help="Of A, then of B: what it flagged. One of one run is compared with the run.", metavar="ID"),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder for the page and the rows that differ; RUN_B/compared/ID_OF_A.")
    ] = None,
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """What differs between two runs, or two decisions: objects, scores, flags. A page and a table of it."""
    spec = o.given(run_specs.CompareSpec, context)
    from ad_jobs.compare import compare as verb

    show.result(verb(spec), json_, show.comparison_text)


def verify(
    context: typer.Context,
    run: o.Run,
    sample: Annotated[int, typer.Option(min=0, help="Objects to fetch, hash and score again.")] = 100,
    seed: o.Seed = 0,
    full: Annotated[
        bool,
        typer.Option("--full", help="Of models that decode reduced frames: tell what whole ones would change, too."),
    ] = False,
    key: o.SigningKey = None,
    identifiers_key: Annotated[
        Path | None, typer.Option(help="File with the key of hashed identifiers: check them, too.", metavar="FILE")
    ] = None,
    manifest: Annotated[
        str | None, typer.Option(help="Manifest the run was made from, where it does not lie where it did.")
    ] = None,
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """Check a run against its record: files, counts, model, and a sample scored again. Exit 1 on any difference."""
    spec = o.given(run_specs.VerifySpec, context)
    from ad_jobs.verify import verify as verb

    found = verb(spec)
    show.result({**found._asdict(), "ok": found.ok}, json_, show.verification_text)
    found.raise_if_different()


def export(
    context: typer.Context,
    run: o.Run,
    out: Annotated[str, typer.Option(help="File of csv and xlsx, folder of the others; local or s3://.")],
    format: Annotated[
        o.ExportFormat,
        typer.Option(
            help="A table; heatmaps over pictures, or over DICOM as Secondary Capture; score maps (Parametric Map), "
            "scores (SR), or what reviewers accepted (KO)."
        ),
    ],
    decision: Annotated[
        str | None, typer.Option(help="What a decision flagged; by default what the run did.", metavar="ID")
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="The so many highest of each model, and not what is flagged.")
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="All rows, and not what is flagged alone.")] = False,
    manifest: Annotated[
        str | None,
        typer.Option(help="Manifest of a run with hashed identifiers, where it does not lie beside the run."),
    ] = None,
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """Hand on what was flagged: as a table, as pictures, or as DICOM that a PACS takes. Exit 1 if rows are refused."""
    spec = o.given(run_specs.ExportSpec, context)
    from ad_jobs.cli.show_export import export_text, raise_if_refused
    from ad_jobs.export import export as verb

    result = verb(spec)
    show.result(result, json_, export_text)
    raise_if_refused(result)
