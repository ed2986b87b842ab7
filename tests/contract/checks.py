"""The rules of the detector contract as plain functions: each takes a maker, and asserts one rule.

A check builds what it needs and leaves nothing behind, so that it runs on any detector, a broken one included.
Shape suffixes as in models/detector.py.
"""

from __future__ import annotations

from collections.abc import Callable

from contract import fits, scores, tiles
from contract.maker import Maker

Check = Callable[[Maker], None]

CHECKS: tuple[Check, ...] = tuple(
    value
    for module in (scores, fits, tiles)
    for name, value in vars(module).items()
    if name.startswith("check_") and callable(value)
)


def ids(check: Check) -> str:
    """A check's name as it reads in a test id."""
    return check.__name__.removeprefix("check_")
