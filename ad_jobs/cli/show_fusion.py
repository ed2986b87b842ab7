"""A fused model for people: who joined, by how much each finds, and why others did not."""

from __future__ import annotations

from typing import Any

from cluster.counting import counted


def fusion_text(record: dict[str, Any], folder: str) -> str:
    """What was fused in `folder`, a line a member."""
    return "\n".join([f"model {record['model_id']} (fused) in {folder}", *members_lines(record["fused"])])


def members_lines(told: dict[str, Any]) -> list[str]:
    """The part `fused` of a record: a line a member, and what all find together."""
    lines = [
        f"  member       {one['kind']} {one['model_id']}, finds {one['found']:.3f}: "
        + (f"weight {one['weight']:.3g}" if one["weight"] else f"left out, {one['why']}")
        for one in told["members"]
    ]
    judged = f"{counted(told['normals'], 'normal frame')} of {told['normal']}, each with {len(told['kinds'])} defects"
    return [*lines, f"  together     finds {told['found']:.3f} (AUROC of synthetic defects, by {judged})"]
