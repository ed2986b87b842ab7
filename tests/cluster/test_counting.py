"""Counts in words, and that nobody words them by himself."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import ModuleType

import pytest

import ad_jobs
import cluster
from cluster.counting import counted

# What is counted, in the plural, behind a number that may be one.
NOUNS = "objects|rows|images|parts|shards|heatmaps|members|frames|labels|models|runs|nodes|CPUs|GPUs|chapters|threads"
WORDED = re.compile(rf"(\{{\}}|%d|%s|%g) ({NOUNS})\b(?!/)|node\(s\)|actor\(s\)")
# No counts, several in one, or never of one: of a limit of thousands, or of two sizes.
OTHERWISE = (
    "over max_",
    "fewer than {} images",
    "of the %s images",
    "of this geometry has",
    "runs Ray",
    "on nodes of {}",
)


@pytest.mark.parametrize(
    ("count", "words", "wanted"),
    [
        (1, ("object",), "1 object"),
        (0, ("object",), "0 objects"),
        (2, ("copy", "copies"), "2 copies"),
        (1, ("copy", "copies"), "1 copy"),
    ],
)
def test_one_is_singular(count: int, words: tuple[str, ...], wanted: str) -> None:
    assert counted(count, *words) == wanted


def test_a_count_has_its_format() -> None:
    assert counted(12345, "row", spec=",") == "12,345 rows"
    assert counted(1.0, "CPU", spec="g") == "1 CPU"


def texts(path: Path) -> list[str]:
    """The texts of a module, what is filled in being {}; of docstrings none."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
            found.append(node.value)
    return found


def _is_worded(text: str) -> bool:
    return WORDED.search(text) is not None and not any(other in text for other in OTHERWISE)


@pytest.mark.parametrize("package", [ad_jobs, cluster])
def test_counts_are_worded_in_one_place(package: ModuleType) -> None:
    modules = Path(str(package.__file__)).parent.rglob("*.py")
    worded = {f"{path.name}: {text}" for path in modules for text in texts(path) if _is_worded(text)}
    assert worded == set()
