"""A decision as text: what was flagged, and what may be expected of it."""

from __future__ import annotations

from math import ceil
from typing import Any

from ad_jobs.deciding.units import UNITS, frames_in, held_out_units
from cluster.counting import counted


def decision_text(value: dict[str, Any]) -> str:
    """What each model's rule flagged, what it promises, and whether the promise is in doubt."""
    ((rule, amount),) = value["rule"].items()
    what = decided_units(value)
    lines = [f"decision {value['decision_id']} of run {value['run_id']}, {rule_text(value)}"]
    # Decisions of earlier versions do not say it.
    if since := value.get("since"):
        lines.append(_since(since, what))
    for model in value["models"]:
        if not model["scored"]:
            lines.append(f"model {model['model_id']}: nothing was scored, so nothing is flagged")
            continue
        at = "" if model["threshold"] is None else f", those above {model['threshold']:.6g}"
        lines.append(f"model {model['model_id']}: {model['flagged']} of {model['scored']} {what} flagged{at}")
        lines.append(f"  {_promise(rule, amount, model, what)}")
        if rule in ("max_fpr", "fdr") and "groups" not in model:
            groups = f" of {model['n_groups']} groups" if what == "images" else ""
            lines.append(f"  against {model['n_normal']} held-out normal {held_out_units(what)}{groups}")
        if rule in ("max_fpr", "fdr") and model["likeness"] and model["likeness"]["doubtful"]:
            lines.append(f"  IN DOUBT: {model['likeness']['doubtful']}")
        for group in model.get("groups", ()):
            lines += _group_lines(group, what)
        # Decisions of earlier versions do not say it.
        if beyond := model.get("beyond_reach"):
            lines.append(f"  {_beyond_reach(beyond, rule, amount, what)}")
        if rule == "fdr" and model["flagged"] == 0 and "groups" not in model:
            needed = ceil(model["scored"] * model["smallest_p"] / amount)
            lines.append(
                f"  with so few it can flag only {needed} or more at once, each above all of those held out: "
                f"calibrate on more (`retroscan calibrate`, then --calibration current), or take "
                f"--max-fpr {model['smallest_p']:.2g} or --top"
            )
        if model["rows_of_held_out"]:
            lines.append(f"  {model['rows_of_held_out']} of the rows are held-out images: of them nothing is promised")
    if "worklist" in value:
        lines.append(f"work list: {value['worklist']}")
    return "\n".join(lines)


def decided_units(value: dict[str, Any]) -> str:
    """What a decision is about: images, studies, series, or folders."""
    # Decisions of earlier versions do not say it.
    found: str = value.get("units") or UNITS[value["level"]]
    return found


def _since(since: dict[str, Any], what: str) -> str:
    """What is not decided here, as it is another run's."""
    told = f"of what is new since run {since['run_id']}, which has {counted(since['objects'], 'object')} of the archive"
    if what == UNITS["image"]:
        return told
    return f"{told}: {what} with images in both are decided by the new ones alone"


def _group_lines(group: dict[str, Any], what: str) -> list[str]:
    """What one group of `--by` was judged by, and whether that is in doubt."""
    name = ", ".join(f"{column} {'unknown' if of is None else of}" for column, of in group["values"].items())
    held_out = f"{group['n_normal']} held-out normal {held_out_units(what)}"
    against = f"{held_out} of its own" if group["own"] else f"all {held_out}: of its own there are too few"
    lines = [f"  {name}: {group['flagged']} of {group['scored']} flagged, against {against}"]
    if group["likeness"]["doubtful"]:
        lines.append(f"    IN DOUBT: {group['likeness']['doubtful']}")
    return lines


def rule_text(value: dict[str, Any]) -> str:
    """The options that a decision was made with."""
    rule = " ".join(f"--{name.replace('_', '-')} {amount!r}" for name, amount in value["rule"].items())
    # Decisions of earlier versions know no groups.
    by = f" --by {','.join(value['by'])}" if value.get("by") else ""
    return rule + ("" if value["level"] == "image" else f" --level {value['level']}") + by


def _promise(rule: str, amount: float, model: dict[str, Any], what: str) -> str:
    if rule == "max_fpr":
        return f"of normal {what} like those held out at most {amount:.2%} are flagged"
    if rule == "fdr":
        if not model["flagged"]:
            return f"none could be flagged such that at most {amount:.2%} of them are expected to be normal"
        of_these = f", {amount * model['flagged']:.1f},"
        return f"at most {amount:.2%} of them{of_these} are expected to be normal"
    if rule == "max_fnr":
        missed = model["missed"]
        return (
            f"of the {model['n_anomalous']} held-out anomalous images {missed['count']} are missed "
            f"(95 % interval {missed['low']:.1%} to {missed['high']:.1%})"
        )
    return "the most suspicious ones; no rate is promised"


def _beyond_reach(beyond: dict[str, Any], rule: str, amount: float, what: str) -> str:
    """What a rule cannot flag, why, and what to do."""
    frames = frames_in(what)
    more = "Give a larger rate"
    if beyond["normals"] is not None:
        more = (
            f"Calibrate with {beyond['normals']} normal {frames} or more, in {what} as large, and name --calibration "
            "current"
        )
    return (
        f"BEYOND REACH: {beyond['count']} of {beyond['of']} {what} have {counted(beyond['frames'], frames[:-1])} or "
        f"more, and --{rule.replace('_', '-')} {amount:g} cannot flag them, however high they score: against so few "
        f"held-out {frames} one of {beyond['largest']} has a p of {beyond['smallest_p']:.2g} at least. {more}, or take "
        "--top."
    )
