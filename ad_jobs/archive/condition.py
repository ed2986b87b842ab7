"""SQL conditions of users over a table of ours, which see nothing but that table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from ad_jobs.archive.sql import Stream, streaming
from ad_jobs.errors import UsageError


def rows_where(
    table: Stream,
    name: str,
    where: str,
    *,
    columns: Sequence[str],
    order: Sequence[str],
    help: str,
    option: str = "where",
) -> pa.Table:
    """The rows of a table that meet an SQL condition (DuckDB's dialect), in order.

    Args:
        table: what the condition is over.
        name: what the table is called, in messages and in the condition.
        where: the condition.
        columns: which columns to give.
        order: by which columns to sort.
        help: the remedy for a condition that is none.
        option: what the condition was given as.

    Raises:
        UsageError: it is no condition over this table, or more than one.
    """
    try:
        where.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{option} is text in Unicode.", repr(where), "Write the character itself.") from error
    try:
        with streaming({name: table}, sealed=True) as connection:
            # `filter` takes a single expression: nothing that leaves the condition, joins or follows it.
            found = connection.view(name).filter(in_sql(where)).order(", ".join(order))
            return found.project(in_sql(", ".join(columns))).to_arrow_table()
    except duckdb.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{option} is one SQL condition over the {name}.", f"{where} ({reason})", help) from error


def in_sql(where: str) -> str:
    """A condition with its column `group` in quotes, which is a word of SQL: as in GROUP BY and WITHIN GROUP.

    >>> in_sql("group = 'a' AND modality = 'group'")
    '"group" = \'a\' AND modality = \'group\''
    """
    # Places are counted in bytes.
    text = where.encode()
    places = [place for place, _ in duckdb.tokenize(where)]
    words = [re.split(rb"\W", text[place:], maxsplit=1)[0].lower() for place in places]
    found, behind = b"", 0
    for place, before, word, after in zip(places, [b"", *words], words, [*words[1:], b""], strict=False):
        if word == b"group" and before != b"within" and after != b"by":
            found += text[behind:place] + b'"group"'
            behind = place + len(word)
    return (found + text[behind:]).decode()


def columns_in(where: str, names: Sequence[str]) -> list[str]:
    """Those of a table's columns that a condition may read: all of them where it cannot be told."""
    try:
        statement = f"SELECT 1 FROM t WHERE ({in_sql(where)}\n)"
        with streaming({}) as connection:
            (text,) = connection.execute("SELECT json_serialize_sql(?)", [statement]).fetchone()
    except (duckdb.Error, UnicodeEncodeError):
        return list(names)
    parsed = json.loads(text)
    found = set(_named(parsed))
    if parsed.get("error") or None in found:
        return list(names)
    return [name for name in names if name.lower() in found]


def _named(node: Any) -> Iterator[str | None]:
    """The names of columns in a parsed statement, in lower case; None for an expression over several (`COLUMNS(*)`)."""
    if isinstance(node, dict):
        if node.get("class") == "STAR":
            yield None
        elif node.get("class") == "COLUMN_REF":
            # scores.flagged, flagged, or a field of a column.
            yield from (name.lower() for name in node["column_names"])
        for value in node.values():
            yield from _named(value)
    elif isinstance(node, list):
        for value in node:
            yield from _named(value)
