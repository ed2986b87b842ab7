"""Where the pages of a run lie: its own in RUN/report, and that of each decision in a folder of its own there."""

from __future__ import annotations

import re

from cluster import storage

FOLDER = "report"
PAGE_FILE = "index.html"
# That of the run, or of a decision.
_PAGE = re.compile(rf"(?:[0-9a-f]{{12}}/)?{re.escape(PAGE_FILE)}")


def page_folder(run_uri: str, decision_id: str | None) -> str:
    """The folder of a run's page, or of the page of one of its decisions; pictures beside a page lie in it, too."""
    return storage.join(run_uri, FOLDER, *([] if decision_id is None else [decision_id]))


def page_uri(run_uri: str, decision_id: str | None) -> str:
    """Where the page itself lies."""
    return storage.join(page_folder(run_uri, decision_id), PAGE_FILE)


def pages(run_uri: str) -> list[str]:
    """The pages that a run has; those of decisions first, by their ids."""
    folder = storage.join(run_uri, FOLDER)
    names = storage.list_names(folder) if storage.is_folder(folder) else []
    return [storage.join(folder, name) for name in names if _PAGE.fullmatch(name)]
