"""What `import retroscan` gives: every public name, explained, and nothing heavy before it is asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import retroscan
from ad_jobs import specs
from ad_jobs.errors import JobError, RetroscanError, TooManyFailed, UsageError

ROOT = Path(__file__).parents[2]
NAMES = [name for name in retroscan.__all__ if not name.startswith("__")]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_there_and_says_what_it_is(name: str) -> None:
    found = getattr(retroscan, name)
    assert found.__name__ == name
    assert found.__doc__
    assert name in dir(retroscan)


def test_what_is_checked_for_types_is_what_is_given_out() -> None:
    tree = ast.parse((ROOT / "retroscan" / "__init__.py").read_text())
    for_types = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: str(node.module)
        for node in for_types.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported.keys() == set(NAMES)
    for name, home in imported.items():
        assert getattr(retroscan, name) is getattr(import_module(home), name)


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'retroscan' has no attribute 'nonesuch'"):
        _ = retroscan.nonesuch


def spec_name(verb: str) -> str:
    return f"{verb.title().replace('_', '')}Spec"


def test_every_verb_has_its_specification() -> None:
    verbs = {name for name in NAMES if hasattr(retroscan, spec_name(name))}
    assert verbs == {
        *(
            "calibrate",
            "compare",
            "decide",
            "evaluate",
            "export",
            "export_model",
            "fit",
            "fuse",
            "index",
            "plan",
            "report",
            "review",
            "scan",
            "score",
            "show",
            "verify",
        )
    }
    given = {name for name in NAMES if name.endswith("Spec")}
    assert given == {spec_name(verb) for verb in verbs}
    assert all(issubclass(getattr(retroscan, name), specs.Spec) for name in given)


def test_what_a_verb_raises_is_public() -> None:
    assert {UsageError, JobError, TooManyFailed} == set(RetroscanError.__subclasses__())
    raised = {"RetroscanError", "UsageError", "JobError", "TooManyFailed", "ImageError", "StorageError", "ClusterError"}
    assert raised <= set(NAMES)


def test_the_import_alone_brings_nothing_heavy() -> None:
    heavy = ("torch", "ray", "pandas", "numpy", "pyarrow", "pydantic", "boto3")
    code = f"import sys, retroscan; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_is_read_without_torch_and_ray() -> None:
    code = "import sys; from retroscan import Run, open_run; print([n for n in ('torch', 'ray') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
