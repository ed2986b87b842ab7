"""The template of the report, filled in: one self-contained page.

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


def render(context: dict[str, Any]) -> str:
    """The page as HTML; `context` is what page.html.j2 names."""
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
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
    script = (here / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        context,
        style=Markup((here / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
    )


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
