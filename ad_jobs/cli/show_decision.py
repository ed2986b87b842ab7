"""A decision as text: what was flagged, and what may be expected of it."""

from __future__ import annotations

from typing import Any


def decision_text(value: dict[str, Any]) -> str:
    """What each model's rule flagged, what it promises, and whether the promise is in doubt."""
    ((rule, amount),) = value["rule"].items()
    what = "images" if value["level"] == "image" else "studies"
    lines = [f"decision {value['decision_id']} of run {value['run_id']}, {rule_text(value)}"]
    for model in value["models"]:
        n, flagged = model["n_normal"], model["flagged"]
        at = "" if model["threshold"] is None else f", those above {model['threshold']:.6g}"
        lines.append(f"model {model['model_id']}: {flagged} of {model['scored']} {what} flagged{at}")
        lines.append(f"  {_promise(rule, amount, model, what)}")
        if rule in ("max_fpr", "fdr"):
            groups = f" of {model['n_groups']} groups" if what == "images" else ""
            lines.append(f"  against {n} held-out normal {what}{groups}")
            if model["likeness"]["doubtful"]:
                lines.append(f"  IN DOUBT: {model['likeness']['doubtful']}")
        if rule == "fdr" and flagged == 0:
            lines.append(f"  (the least p that {n} of them can give is {model['smallest_p']:.2g}: more tell more)")
        if model["rows_of_held_out"]:
            lines.append(f"  {model['rows_of_held_out']} of the rows are held-out images: of them nothing is promised")
    return "\n".join(lines)


def rule_text(value: dict[str, Any]) -> str:
    """The options that a decision was made with."""
    rule = " ".join(f"--{name.replace('_', '-')} {amount!r}" for name, amount in value["rule"].items())
    return rule if value["level"] == "image" else f"{rule} --level {value['level']}"


def _promise(rule: str, amount: float, model: dict[str, Any], what: str) -> str:
    if rule == "max_fpr":
        return f"of normal {what} like those held out at most {amount:.2%} are flagged"
    if rule == "fdr":
        of_these = f", {amount * model['flagged']:.1f}," if model["flagged"] else ""
        return f"at most {amount:.2%} of them{of_these} are expected to be normal"
    if rule == "max_fnr":
        missed = model["missed"]
        return (
            f"of the {model['n_anomalous']} held-out anomalous images {missed['count']} are missed "
            f"(95 % interval {missed['low']:.1%} to {missed['high']:.1%})"
        )
    return "the most suspicious ones; no rate is promised"
