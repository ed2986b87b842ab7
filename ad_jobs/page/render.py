"""Templates of pages, filled in: each one self-contained.

Styles and script stand in it, pictures are data URIs, and its content security policy forbids the rest.
Whatever comes from the archive (names, URIs, details) is escaped by the template.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_HERE = Path(__file__).parent


def render(context: dict[str, Any]) -> str:
    """The report as HTML; `context` is what page.html.j2 names."""
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return fill("page.html.j2", {**context, "script": Markup(script), "script_hash": digest})


def fill(template: str, context: dict[str, Any]) -> str:
    """A template of this folder as HTML, with the one style sheet; `context` is what else it names."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": "{:,}".format,
        "number": _number,
        "share": _share,
        "metric": _metric,
        "percent": _percent,
        "moment": _moment,
        "size": _size,
        "duration": _duration,
    }
    style = Markup((_HERE / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(context, style=style)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _metric(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _share(value: float, whole: float) -> str:
    if not whole:
        return "–"
    share = value / whole
    return f"{share:.2%}" if share < 0.1 else f"{share:.1%}"


def _moment(value: datetime) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S} {value.tzname() or ''}".strip()


def _size(value: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value = round(value / 1000)
    return f"{value:,} TB"


def _duration(elapsed: Any) -> str:
    seconds = int(elapsed.total_seconds())
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds % 60:02d} s"
