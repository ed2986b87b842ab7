"""A page whose code is run: its Python blocks in order in one namespace, each with the output that the page shows."""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

# What differs from run to run stands as ... in a page.
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Step(NamedTuple):
    """A Python block, the line it begins at, and the `text` block right after it, if there is one."""

    line: int
    code: str
    shown: str | None


def steps(page: Path) -> list[Step]:
    """The Python blocks of a page."""
    text = page.read_text(encoding="utf-8")
    blocks = list(_FENCE.finditer(text))
    found = []
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block[1] != "python":
            continue
        beside = following is not None and not text[block.end() : following.start()].strip()
        shown = following[2] if following is not None and beside and following[1] == "text" else None
        found.append(Step(text.count("\n", 0, block.start()) + 2, block[2], shown))
    return found


def run(page: Path, names: dict[str, Any]) -> dict[str, Any]:
    """What the names of the page's code stand for, after all of it.

    Raises:
        AssertionError: a block gave another output than the page shows.
    """
    for step in steps(page):
        given = _output(step, str(page), names)
        if step.shown is not None and not doctest.OutputChecker().check_output(step.shown, given, _FLAGS):
            raise AssertionError(f"{page.name}, line {step.line}, shows\n{step.shown}\nand the code gives\n{given}")
    return names


def _output(step: Step, page: str, names: dict[str, Any]) -> str:
    """What a block prints, and what its last line is, if that is an expression: as a notebook shows it."""
    tree = ast.parse(step.code, page)
    ast.increment_lineno(tree, step.line - 1)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, page, "exec"), names)
        value = eval(compile(ast.Expression(last.value), page, "eval"), names) if isinstance(last, ast.Expr) else None
        if value is not None:
            print(repr(value))
    return printed.getvalue()
