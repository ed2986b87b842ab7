"""A decision as text: what was flagged, and what may be expected of it."""

from __future__ import annotations

from typing import Any


def decision_text(value: dict[str, Any]) -> str:
    """What each model's rule flagged, what it promises, and whether the promise is in doubt."""
    ((rule, amount),) = value["rule"].items()
    lines = [f"decision {value['decision_id']} of run {value['run_id']}, --{rule.replace('_', '-')} {amount:g}"]
    for model in value["models"]:
        n, flagged, scored = model["n_normal"], model["flagged"], model["scored"]
        at = "" if model["threshold"] is None else f", those above {model['threshold']:.6g}"
        lines.append(f"model {model['model_id']}: {flagged} of {scored} scored rows flagged{at}")
        lines.append(f"  {_promise(rule, amount, model)}")
        lines.append(f"  against {n} held-out normals of {model['n_groups']} groups")
        if rule in ("max_fpr", "fdr") and flagged == 0:
            lines.append(f"  (the least p that {n} normals can give is {model['smallest_p']:.2g}: more tell more)")
        if model["likeness"]["doubtful"]:
            lines.append(f"  IN DOUBT: {model['likeness']['doubtful']}")
        if model["rows_of_held_out"]:
            lines.append(f"  {model['rows_of_held_out']} of the rows are held-out images: of them nothing is promised")
    return "\n".join(lines)


def _promise(rule: str, amount: float, model: dict[str, Any]) -> str:
    if rule == "max_fpr":
        return f"of normal images like those held out at most {amount:.2%} are flagged"
    if rule == "fdr":
        return f"at most {amount:.2%} of them, {amount * model['flagged']:.0f}, are expected to be normal"
    if rule == "max_fnr":
        return f"of abnormal images like those held out {amount:.2%} are missed"
    return "the most suspicious ones; no rate is promised"
