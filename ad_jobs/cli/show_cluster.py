"""What is said of a cluster, for people: its jobs, and what the doctor found."""

from __future__ import annotations

from typing import Any


def jobs_text(jobs: list[dict[str, Any]]) -> str:
    """Jobs in columns, one a line, under a heading."""
    rows = [("id", "status", "verb", "started (UTC)", "ended (UTC)", "exit", "message")]
    for job in jobs:
        times = [(job[key] or "-")[:19].replace("T", " ") for key in ("started", "ended")]
        code = "-" if job["exit_code"] is None else str(job["exit_code"])
        # Of a log, what was said last.
        message = job["message"].strip().rpartition("\n")[2][:120]
        rows.append((job["id"], job["status"], job["verb"] or "-", times[0], times[1], code, message))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def checks_text(checks: list[dict[str, str]]) -> str:
    """What the doctor found, one check a line; what to do about it stands below it."""
    lines = []
    for check in checks:
        lines.append(f"{check['status']:<8} {check['name']}: {check['found']}")
        if check["remedy"]:
            lines.append(f"{'':<8} -> {check['remedy']}")
    return "\n".join(lines)
