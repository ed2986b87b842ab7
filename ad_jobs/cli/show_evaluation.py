"""An evaluation as text: first what the run, as it stands, found and missed, then how well its scores rank."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table

from ad_jobs.deciding.units import UNITS
from cluster.counting import counted

# What the scores are worth, and what the best threshold would have done, which only labels can tell.
METRICS = ("image_auroc", "image_ap", "pixel_auroc", "aupro", "pixel_ap")
ORACLE = ("f1_max", "accuracy_max", "accuracy_zero_fn")


def evaluation_view(value: dict[str, Any], *, oracle: bool = False) -> Group:
    """Each model's operating point, then its metrics; with `oracle` also those at thresholds chosen by the labels."""
    shown: list[Any] = []
    for model_id, judged in {value["model_id"]: value, **value["models"]}.items():
        # Evaluations of earlier versions do not say it.
        units = value.get("units") or UNITS[value.get("level", "image")]
        shown += [
            operating_point(model_id, judged, value.get("decision"), units),
            *weakest_subgroups(judged.get("subgroups", [])),
            _metrics(judged, oracle),
        ]
    notes = [value["pixel_note"]] if value.get("pixel_note") else []
    if value["n_missing"]:
        missing = counted(value["n_missing"], "label is of an image", "labels are of images")
        notes.append(f"{missing} not in the run{_left_out(value['labels'])}.")
    if (disputed := value.get("labels", {}).get("disputed")) is not None:
        notes.append("Judged is what was reviewed: of what nobody looked at, no sensitivity is told.")
        if disputed:
            notes.append(f"{counted(disputed, 'frame')} left out, of which reviewers say both.")
    return Group(*shown, *notes)


def operating_point(model_id: str, judged: dict[str, Any], decision: str | None, units: str = "images") -> str:
    """What was flagged, found and missed, with the rates that follow; and whether the threshold is what is wrong."""
    at = judged["at_threshold"]
    found, missed, false = at["true_positive"], at["false_negative"], at["false_positive"]
    by = f"decision {decision}" if decision else "the run's threshold"
    height = "" if at["threshold"] is None else f" ({at['rule']}, {at['threshold']:.6g})"
    lines = [
        f"{judged['kind']} {model_id}, by {by}{height}:",
        f"  flagged {found + false} of {judged['n_normal'] + judged['n_anomalous']} labelled {units}: "
        f"found {found} of {judged['n_anomalous']} anomalous, missed {missed}, {false} of {judged['n_normal']} normal",
        f"  sensitivity {_rate(at['fnr'])}, specificity {_rate(at['fpr'])}",
    ]
    if judged["n_failed"] + judged["n_skipped"]:
        lines.append(
            f"  NOT JUDGED, although labelled: {judged['n_failed']} that failed, "
            f"{judged['n_skipped']} that were skipped"
        )
    could = at["tpr_at_5_percent_fpr"]
    if decision is None and could is not None and missed + found and found / (missed + found) < could / 2:
        lines.append(
            f"  MOST ARE MISSED BY THE THRESHOLD, not by the scores: with 5 % of the normal images flagged, "
            f"{could:.0%} of the anomalous ones would be. See retroscan decide, or calibrate on more normal images."
        )
    return "\n".join(lines)


def weakest_subgroups(groups: list[dict[str, Any]]) -> list[str]:
    """The group with the lowest sensitivity, and that with the lowest specificity: evaluation.json has all of them."""
    lines = []
    for rate, of in (("sensitivity", "n_anomalous"), ("specificity", "n_normal")):
        told = [group for group in groups if group[rate]["value"] is not None]
        # Of one group there is nothing to compare.
        if len(told) > 1:
            worst = min(told, key=lambda group: group[rate]["value"])
            value, low, high = (worst[rate][name] for name in ("value", "low", "high"))
            lines.append(
                f"  lowest {rate} of {len(told)} subgroups: {worst['by']} {worst['value'] or 'others'}, "
                f"{value:.1%} ({low:.1%} to {high:.1%}) of {worst[of]}"
            )
    return lines


def _rate(error: dict[str, float | None]) -> str:
    """One less an error rate, with its interval."""
    value, low, high = (error[name] for name in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "-"
    return f"{1 - value:.1%} ({1 - high:.1%} to {1 - low:.1%})"


def _metrics(judged: dict[str, Any], oracle: bool) -> Table:
    table = Table("metric", "value", "95 % interval")
    for name in (*METRICS, *(ORACLE if oracle else ())):
        found = judged[name]
        value = "-" if found["value"] is None else f"{found['value']:.4f}"
        interval = "-" if found["low"] is None else f"{found['low']:.4f} to {found['high']:.4f}"
        table.add_row(name, value, interval)
    if oracle:
        table.caption = "f1_max and accuracy are at thresholds that the labels themselves chose."
    return table


def _left_out(labels: dict[str, Any]) -> str:
    """How many of them the run left out, as far as that is known."""
    count = labels.get("not_selected", 0)
    if count is None:
        return ", which leaves something out (--where, --since)"
    return f": {count} of them were left out of it (--where, --since)" if count else ""
