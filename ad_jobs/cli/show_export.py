"""An export as text: how many rows were written, and of the others why not."""

from __future__ import annotations

from typing import Any

from ad_jobs.errors import JobError
from ad_jobs.exporting.tally import sentence
from cluster.counting import counted


def export_text(value: dict[str, Any]) -> str:
    """What was written where; a line for each reason why rows were not."""
    of_what = f"run {value['run_id']}" if value["decision_id"] is None else f"decision {value['decision_id']}"
    rows, files = counted(value["selected"], "row"), counted(value["files"], "file")
    told = f"{value['written']} of {rows} of {of_what} written as {value['format']} to {value['out']} ({files})"
    return "\n".join([told, *(sentence(reason, count) for reason, count in value["refused"].items())])


def raise_if_refused(value: dict[str, Any]) -> None:
    """Raise JobError where a row was not handed on: the exit code says so, too."""
    refused = sum(value["refused"].values())
    if refused:
        raise JobError(
            f"{refused} of {counted(value['selected'], 'row')} could not be handed on: {', '.join(value['refused'])}.",
            f"{value['out']}/index.csv says which.",
        )
