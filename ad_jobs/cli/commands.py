"""One function a verb: its options, read into its specification, and the one call of it.

Verbs are imported when they are called: --help never imports torch or Ray.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ad_jobs import specs
from ad_jobs.cli import options as o
from ad_jobs.cli import show
from ad_jobs.cli.show_auto import ABOUT_AUTO
from cluster.counting import counted


def demo(
    context: typer.Context,
    out: Annotated[str, typer.Option(help="Folder for the archive, the model and the run.")] = "demo",
    seed: o.Seed = 0,
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """A phantom DICOM archive through every verb: index, fit, calibrate, scan, evaluate, report, verify."""
    spec = o.given(specs.DemoSpec, context)
    from ad_jobs.demo import demo as verb

    show.result(verb(spec), json_, show.demo_table)


def detectors(json_: o.Json = False) -> None:
    """The detectors: which to choose, what each needs, and where its weights come from."""
    from models.registry import DETECTORS

    rows = [show.detector_row(entry) for entry in DETECTORS.values()]
    show.result(rows, json_, lambda value: "\n\n".join([*map(show.detector_text, value), ABOUT_AUTO]))


def index(
    context: typer.Context,
    source: o.Source,
    out: Annotated[str, typer.Option(help="Folder of the manifest, local or s3://.")],
    headers: Annotated[
        bool, typer.Option("--headers", help="Also read DICOM headers into columns for --where.")
    ] = False,
    demographics: Annotated[
        bool, typer.Option("--demographics", help="With --headers: age by bands of five years, and sex.")
    ] = False,
    identifiers: Annotated[
        o.Identifiers, typer.Option(help="With --headers: how studies, series, instances and institutions are named.")
    ] = o.Identifiers.plain,
    identifiers_key: o.IdentifiersKey = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="With --headers: running Ray cluster that reads them; by default RAY_ADDRESS, else this process.",
            metavar="ADDRESS",
        ),
    ] = None,
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """List an archive once, into a manifest that scans refer to. Run again to continue."""
    spec = o.given(specs.IndexSpec, context)
    from ad_jobs.index import index as verb

    info = verb(spec).model_dump(mode="json")
    show.result(info, json_, lambda v: f"{counted(v['objects'], 'object')} in {out} (digest {v['digest'][:12]})")


def fit(
    context: typer.Context,
    detector: Annotated[str, typer.Option(help="One of `retroscan detectors`, or auto: the best of several.")],
    normal: Annotated[str, typer.Option(help="Normal images. " + o.SOURCE)],
    out: Annotated[str, typer.Option(help="Folder of the model, local or s3://.")],
    anomalous: Annotated[
        str | None, typer.Option(help="Anomalous images, for a detector that learns from them.")
    ] = None,
    preset: Annotated[
        o.Preset, typer.Option(help="Scale: what two cores can do, or what the paper reports.")
    ] = o.Preset.fast,
    size: Annotated[
        str | None,
        typer.Option(
            help="Size in pixels that images are resized to: 128, or heightxwidth; by default the preset's, or with "
            "--tile their own."
        ),
    ] = None,
    tile: Annotated[
        str | None,
        typer.Option(help="Score images in overlapping tiles of this size, 256 or heightxwidth: for small defects."),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(help="With --tile: by how many pixels neighbours overlap; an eighth by default.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images; the preset's by default.")] = None,
    seed: o.Seed = 0,
    window: Annotated[
        str, typer.Option(help="Grey window: dicom, percentile, or low,high in modality units.")
    ] = "dicom",
    resize: Annotated[
        o.Resize, typer.Option(help="Stretch to the input size, or keep the aspect and pad.")
    ] = o.Resize.stretch,
    decode: Annotated[
        o.Decode, typer.Option(help="Frames whole, or no larger than the input needs: JPEG and JPEG 2000 can.")
    ] = o.Decode.full,
    workers: Annotated[int, typer.Option(min=1, help="Training workers.")] = 1,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Detector option key=value, repeatable.", metavar="KEY=VALUE")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Of --detector auto: the time to try several in; 10m by default.", metavar="TIME")
    ] = None,
    limits: o.Limits = None,
    identifiers: o.SiteNames = o.Identifiers.none,
    identifiers_key: o.IdentifiersKey = None,
    dry_run: o.DryRun = False,
    address: o.Address = None,
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """Fit a detector on normal images; a tenth is held out for its first calibration. Run again to continue."""
    spec = o.given(specs.FitSpec, context)
    if dry_run:
        from ad_jobs.cli.dry_run import fit_outlook, fit_text

        show.result(fit_outlook(spec), json_, fit_text)
        return
    from ad_jobs.fit import fit as verb
    from ad_jobs.scoring.model_store import read_calibration

    def told(record: dict[str, Any]) -> str:
        return show.fitted_text(record, read_calibration(spec.out, record["model_id"]).model_dump(mode="json"), out)

    show.result(verb(spec), json_, told)


def fuse(
    context: typer.Context,
    model: Annotated[list[str], typer.Argument(help="Folders of fitted models.", show_default=False)],
    out: Annotated[str, typer.Option(help="Folder of the fused model, local or s3://.")],
    normal: Annotated[
        str | None,
        typer.Option(help="Normal images no member was fitted on; by default those they held out. " + o.SOURCE),
    ] = None,
    identifiers: o.SiteNames = o.Identifiers.none,
    identifiers_key: o.IdentifiersKey = None,
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """One model of several: they score together, weighted by what each adds to finding synthetic defects."""
    spec = o.given(specs.FuseSpec, context)
    from ad_jobs.cli.show_fusion import fusion_text
    from ad_jobs.fuse import fuse as verb

    show.result(verb(spec), json_, lambda record: fusion_text(record, out))


def calibrate(
    context: typer.Context,
    model: o.Model,
    normal: Annotated[str | None, typer.Option(help="Held-out normal images. " + o.SOURCE)] = None,
    anomalous: Annotated[str | None, typer.Option(help="Anomalous images, for --max-fnr.")] = None,
    from_reviews: Annotated[
        str | None, typer.Option(help="In place of images: a run by this model that people reviewed.", metavar="RUN")
    ] = None,
    max_fpr: Annotated[float | None, typer.Option(help="Share of normal images that may be flagged.")] = None,
    max_fnr: Annotated[float | None, typer.Option(help="Share of the anomalous images that may be missed.")] = None,
    margin: Annotated[float, typer.Option(help="With --max-fnr: lower the threshold by this share.")] = 0.05,
    accept: o.Accept = None,
    identifiers: o.SiteNames = o.Identifiers.none,
    identifiers_key: o.IdentifiersKey = None,
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """Set a model's threshold and heatmap scale from held-out images."""
    spec = o.given(specs.CalibrateSpec, context)
    from ad_jobs.calibrate import calibrate as verb

    show.result(verb(spec).model_dump(mode="json"), json_, show.calibrated_text)


def plan(
    context: typer.Context,
    source: o.Source,
    model: Annotated[list[str], typer.Option(help="Folder of a fitted model.")],
    where: o.Where = None,
    accept: o.Accept = None,
    since: o.Since = None,
    retry: Annotated[o.Retry | None, typer.Option(help="With --since, also what failed there.")] = None,
    heatmaps: Annotated[o.Heatmaps, typer.Option(help="Which a scan is to keep.")] = o.Heatmaps.flagged,
    limits: o.Limits = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the cluster to tell times for.")] = 1,
    cores: Annotated[int | None, typer.Option(min=1, help="CPUs of a node; by default this machine's.")] = None,
    price_per_hour: Annotated[float | None, typer.Option(min=0, help="Price of a node for an hour.")] = None,
    sample: Annotated[int, typer.Option(min=2, help="Objects to fetch, decode and score, to see what one takes.")] = 32,
    headers: Annotated[
        int, typer.Option(min=1, help="Objects whose headers are read if SOURCE is no manifest with headers.")
    ] = 1000,
    seed: o.Seed = 0,
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """What a scan will score, what it will not and why, and what it takes: before it, and without writing anything."""
    spec = o.given(specs.PlanSpec, context)
    from ad_jobs.cli.show_plan import plan_text
    from ad_jobs.plan import plan as verb

    show.result(verb(spec), json_, plan_text)


def scan(
    context: typer.Context,
    source: o.Source,
    model: Annotated[list[str], typer.Option(help="Folder of a fitted model.")],
    out: Annotated[str, typer.Option(help="Folder of the run, local or s3://. Run again to continue.")],
    where: o.Where = None,
    accept: o.Accept = None,
    since: o.Since = None,
    retry: Annotated[o.Retry | None, typer.Option(help="With --since, also score again what failed there.")] = None,
    heatmaps: Annotated[
        o.Heatmaps, typer.Option(help="Which to keep: flagged images and 1 % of the rest, all, or none.")
    ] = o.Heatmaps.flagged,
    identifiers: Annotated[
        o.Identifiers, typer.Option(help="DICOM UIDs in the table: plain, hashed (URIs too) or none.")
    ] = o.Identifiers.plain,
    identifiers_key: o.IdentifiersKey = None,
    manifest_out: Annotated[
        str | None,
        typer.Option(
            help="Folder for the manifest of a SOURCE that is none; OUT/manifest, or with hashed OUT.manifest."
        ),
    ] = None,
    key: o.SigningKey = None,
    max_failed: Annotated[
        float, typer.Option(help="End the run, exit code 3, once a larger share of the objects has failed.")
    ] = 1.0,
    limits: o.Limits = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Frames scored at once; on CPUs what is fastest by default. Does not change a score."),
    ] = None,
    amp: Annotated[
        bool,
        typer.Option("--amp", help="Reduced precision, on GPUs alone: faster; scores agree within a wider tolerance."),
    ] = False,
    dry_run: o.DryRun = False,
    address: o.Address = None,
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """Score every object of an archive into a table, each exactly once. Run again to continue."""
    spec = o.given(specs.ScanSpec, context)
    if dry_run:
        from ad_jobs.cli.dry_run import scan_outlook, scan_text

        show.result(scan_outlook(spec), json_, scan_text)
        return
    from ad_jobs.cli.show_scan import scan_json
    from ad_jobs.scan import scan as verb

    record = verb(spec)
    told = scan_json(record, spec.out) if json_ else record.model_dump(mode="json")
    show.result(told, json_, lambda record: show.balance_text(record, out))


def show_(
    context: typer.Context,
    folder: Annotated[str, typer.Argument(help="Folder of a model or of a finished run.", show_default=False)],
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """What a model or a run is: a model's domain says what it takes, and may be edited (domain.json)."""
    spec = o.given(specs.ShowSpec, context)
    from ad_jobs.show import show as verb

    show.result(verb(spec), json_, show.shown_text)


def export_model(
    context: typer.Context,
    model: o.Model,
    out: Annotated[str, typer.Option(help="File to write, local or s3://; its name ends with .onnx.")],
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """A model as a graph in ONNX; the file says what it takes and gives."""
    spec = o.given(specs.ExportModelSpec, context)
    from ad_jobs.export_model import export_model as verb

    show.result(verb(spec), json_, show.exported_text)


def score(
    context: typer.Context,
    model: o.Model,
    images: Annotated[list[str], typer.Argument(help="Image files or s3:// objects.", show_default=False)],
    accept: o.Accept = None,
    json_: o.Json = True,
    config: o.Config = None,
) -> None:
    """Score a few images here and now, always as JSON: the numbers a scan gives."""
    spec = o.given(specs.ScoreSpec, context)
    from ad_jobs.score import score as verb

    rows = verb(spec)
    print(json.dumps(rows, indent=2))
    show.raise_if_failed(rows)
