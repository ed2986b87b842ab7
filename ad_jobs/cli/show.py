"""Results for people: the tables and lines that the command line prints where it is not asked for JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group

from ad_jobs.cli.show_evaluation import evaluation_view
from ad_jobs.cli.show_model import calibrated_text as calibrated_text
from ad_jobs.cli.show_model import fitted_text as fitted_text
from ad_jobs.cli.show_model import model_text, plain
from ad_jobs.cli.show_reviews import reviews_text
from ad_jobs.deciding.text import rule_text
from ad_jobs.errors import JobError
from cluster.counting import counted
from models.presets import PRESETS

# Torch stands behind it.
if TYPE_CHECKING:
    from models.registry import Entry


def result(value: Any, as_json: bool, render: Callable[[Any], Any]) -> None:
    """Print a verb's result: as JSON, or as `render` makes it readable."""
    if as_json:
        print(json.dumps(value, indent=2))
        return
    shown = render(value)
    if isinstance(shown, str):
        print(shown)
    else:
        Console().print(shown)


def detector_row(entry: Entry) -> dict[str, Any]:
    """A detector as plain values, its presets by name: what each sets, and all options that it comes to."""
    config = entry.config_class()
    presets = {
        name: {
            "size": list(preset.size_px),
            "set": dict(preset.options),
            "options": config.model_validate(preset.options).model_dump(mode="json"),
        }
        for name, preset in PRESETS[entry.kind].items()
    }
    return {
        "detector": entry.kind,
        "method": entry.title,
        "source": entry.source,
        "needs_anomalous": entry.needs_anomalous,
        "weights": entry.weights,
        "choose": entry.choose,
        "presets": presets,
    }


def detector_text(row: dict[str, Any]) -> str:
    """One of `retroscan detectors`, a line for each thing to know."""
    needs = "normal and anomalous images" if row["needs_anomalous"] else "normal images"
    presets = []
    for name, preset in row["presets"].items():
        height, width = preset["size"]
        options = preset["options"] if name == "fast" else preset["set"]
        told = ", ".join(f"{key} {plain(value)}" for key, value in options.items())
        presets.append(f"  --preset {name:<6} {height}x{width} px, {told}")
    return "\n".join(
        (
            f"{row['detector']}: {row['method']}",
            f"  choose it for   {row['choose']}",
            f"  needs           {needs}; weights: {row['weights']}",
            f"  source          {row['source']}",
            *presets,
        )
    )


_SIGNATURES = {
    "unsigned": "run.json is unsigned",
    "signed": "run.json is signed by this key",
    "wrong": "run.json is signed by another key, or was changed",
    "unchecked": "run.json is signed, and no key was given to check it",
}


def verification_text(value: dict[str, Any]) -> str:
    """What was verified, and whether it holds."""
    return (
        f"{'verified' if value['ok'] else 'DIFFERENT'}: run {value['run_id']}, {counted(value['parts'], 'part')}, "
        f"{counted(value['heatmap_parts'], 'heatmap shard')}, {counted(value['sampled'], 'object')} fetched again, "
        f"{value['scored']} of them scored again within {value['tolerance']:g}; {_SIGNATURES[value['signature']]}"
        + ("" if value["names_checked"] else "; the names of objects were not checked (--identifiers-key, --manifest)")
        + ("" if value["parent_checked"] else "; what the run's parent has was not checked: it is gone")
        + "".join(f"\n{_whole_text(one)}" for one in value["whole"])
    )


def _whole_text(one: dict[str, Any]) -> str:
    """What decoding whole frames would change for one model."""
    model = f"model {one['model_id']}"
    if one["decode"] == "full":
        return f"{model} decodes whole frames: there is nothing to compare"
    failed = "".join(f"; {count} would have no score: {code}" for code, count in one["by_code"].items())
    if not one["frames"]:
        return f"{model} decodes reduced frames: none of the sample was scored whole{failed}"
    spread = one["spread"]
    shares = (
        f", {one['largest'] / spread:.2%} and {one['median'] / spread:.2%} of the spread of the calibration's normals"
        if spread
        else ""
    )
    return (
        f"{model} decodes reduced frames: whole, {one['frames']} score otherwise by {one['largest']:.3g} at most and "
        f"{one['median']:.3g} in the median{shares}; {one['unflagged']} would no longer be flagged, "
        f"{one['flagged']} would be{failed}"
    )


def exported_text(value: dict[str, Any]) -> str:
    """Where a model's graph was written, and what it is of."""
    return f"{value['out']}: {value['kind']} {value['model_id']}, {value['size_px']} px, {value['bytes'] / 1e6:.1f} MB"


def comparison_text(value: dict[str, Any]) -> str:
    """What differs between two runs: first what they were made with."""
    a, b, objects = value["a"], value["b"], value["objects"]
    lines = [f"A {a['run_id']} in {a['uri']}", f"B {b['run_id']} in {b['uri']}"]
    lines += [value["relation"]] if value["relation"] else []
    lines += [f"different: {one['name']}: {one['a']} in A, {one['b']} in B" for one in value["settings"]]
    lines.append(
        f"objects: {objects['both']} in both, {objects['only_a']} only in A, {objects['only_b']} only in B; "
        f"{objects['content_changed']} with other content"
    )
    lines += [f"{counted(one['rows'], 'row')}: {one['a']} in A, {one['b']} in B" for one in value["statuses"]]
    for model in value["models"]:
        same = model["model_id_a"] == model["model_id_b"]
        correlation = (
            f"{model['rank_correlation']:.4f} over {counted(model['rows_ranked'], 'row')} of the same content"
            if model["rank_note"] is None
            else f"none, as {model['rank_note']}"
        )
        lines.append(
            f"model {model['model_id_a']}{'' if same else ' and ' + model['model_id_b']}: rank "
            f"correlation {correlation}"
        )
        if same:
            differ = counted(model["scores_differ"], "score differs", "scores differ")
            lines[-1] += f", {differ} by more than {value['tolerance']:g}"
        if model["largest_difference"]:
            lines[-1] += f", at most by {model['largest_difference']:.6g}"
        lines.append(
            f"  flagged in both {model['flagged_both']}, only in A {model['flagged_only_a']}, only in B "
            f"{model['flagged_only_b']}; thresholds {_height(model['threshold_a'])} and {_height(model['threshold_b'])}"
        )
    return "\n".join(
        [
            *lines,
            f"{counted(value['rows_differ'], 'row differs', 'rows differ')}: {value['differences']}",
            value["page"],
        ]
    )


def _height(threshold: float | None) -> str:
    return "none" if threshold is None else f"{threshold:.6g}"


def raise_if_failed(rows: list[dict[str, Any]]) -> None:
    """Raise JobError where an image has no score: the exit code of `score` says so, too."""
    from ad_jobs.schema import FAILED

    failed = [row for row in rows if row["status"] == FAILED]
    if failed:
        codes = ", ".join(sorted({row["error_code"] for row in failed}))
        raise JobError(
            f"{len(failed)} of {counted(len(rows), 'image')} could not be scored: {codes}.", "See error_detail."
        )


def selection_text(manifest: dict[str, Any], parent: dict[str, Any] | None) -> str:
    """What a condition and a parent left of the manifest, a line with its end; nothing without either."""
    from ad_jobs.results.run import not_selected

    listed, selected, undecided = (manifest[name] for name in ("listed", "objects", "undecided"))
    if (manifest["where"] is None and parent is None) or listed is None:
        return ""
    line, already = f"manifest {listed} = selected {selected}", manifest.get("already", 0)
    if parent is not None:
        line += f" + already in {parent['run_id']} {already}"
    if manifest["where"] is not None:
        line += f" + not selected {not_selected(listed, selected, already, undecided)}"
    if undecided:
        line += f" + undecided {undecided} (the condition is NULL, as for objects without a header)"
    if parent is not None and (again := again_text(parent)):
        line += f"\nselected {selected} = new {selected - parent['retried'] - parent['widened']}{again}"
    if parent is not None and not selected:
        line += f"\nnothing is new since {parent['run_id']}: this run is empty, and can be the next one's --since"
    return line + "\n"


def again_text(parent: dict[str, Any]) -> str:
    """Of a run's objects those that its parent has, and why they were scored again; nothing where there are none."""
    why = {"failed there": parent["retried"], "out of a domain there that is wider now": parent["widened"]}
    return "".join(f" + {what} {count}" for what, count in why.items() if count)


def balance_text(record: dict[str, Any], folder: str) -> str:
    """A run's counts, which add up to its manifest's, or to what was selected of it."""
    counts, manifest, parent = record["counts"], record["manifest"], record.get("parent")
    codes = ", ".join(f"{code} {count}" for code, count in sorted(counts["by_code"].items()))
    whole = "manifest" if manifest["where"] is None and parent is None else "selected"
    return (
        selection_text(manifest, parent)
        + f"scored {counts['scored']} + failed {counts['failed']} + skipped {counts['skipped']} "
        f"= {whole} {counts['objects']}\n"
        f"{counted(counts['rows'], 'row')}, {counts['flagged']} flagged, "
        f"{counted(counts['heatmaps'], 'heatmap')} kept, run {record['run_id']} in {folder}"
        + (f"\n{codes}" if codes else "")
        + _outside_text(counts)
    )


def _outside_text(counts: dict[str, Any]) -> str:
    """What to do about objects that no fit saw the like of; nothing where there are none."""
    outside = counts["by_code"].get("out_of_domain", 0)
    if not outside:
        return ""
    return (
        "\nout_of_domain: a model's fit saw none of their kind; error_detail says by which fields, "
        "and --accept names each that is not to count (modality=CT, body_part, spacing_mm, ...)"
    )


def shown_text(value: dict[str, Any]) -> str:
    """What a model or a run is, a line for each thing to know."""
    return model_text(value["model"]) if "model" in value else _run_text(value["run"])


def _run_text(run: dict[str, Any]) -> str:
    models = [
        f"  model        {model['model_id']} ({model['kind']}), threshold {model['threshold']:.6g}, {model['uri']}"
        for model in run["models"]
    ]
    ended = f"  finished     {run['ended_at']}, retroscan {run['versions'].get('retroscan', 'unknown')}"
    own = {model["model_id"]: model.get("calibration_id") for model in run["models"]}
    decided = [
        f"  decision     {one['decision_id']}, {rule_text(one)}: "
        + ", ".join(_flagged_text(part, own[part["model_id"]]) for part in one["models"])
        for one in run["decisions"]
    ]
    pages = [f"  page         {one}" for one in run["pages"]]
    damaged = [f"  DAMAGED      {one}" for one in run["damaged"]]
    lines = [*models, ended, *decided, *pages, *reviews_text(run["reviews"]), *damaged]
    return "\n".join([balance_text(run, run["uri"]), f"  source       {run['source']}", *lines])


def _flagged_text(part: dict[str, Any], own: str | None) -> str:
    """What a decision flagged of a model's rows; and by which calibration, where that is not the run's own."""
    other = part["calibration_id"] if part["calibration_id"] != own else None
    return f"{part['flagged']} of {part['scored']} flagged" + (f" by calibration {other}" if other else "")


def demo_table(value: dict[str, Any]) -> Any:
    """The demo's metrics, and where its report lies."""
    return Group(evaluation_view(value["evaluation"]), f"report: {value['report']}")
