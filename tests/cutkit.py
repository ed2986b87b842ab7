"""A command that ends at any moment, as by SIGKILL: before each change of a store, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cluster import storage

# What changes a store.
_CHANGES = ("write_bytes", "upload_file", "delete")


class Cut(BaseException):
    """No error that anybody handles."""


@contextmanager
def cut_before(change: int) -> Iterator[None]:
    """A block that ends by Cut before the so manieth change of a store."""
    left = change

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def change_or_end(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Cut
            return real(*args, **options)

        return change_or_end

    with pytest.MonkeyPatch.context() as patch:
        for name in _CHANGES:
            patch.setattr(storage, name, counted(getattr(storage, name)))
        yield


def once(real: Callable[..., Any], key: Callable[..., object] = lambda *_, **__: None) -> Callable[..., Any]:
    """`real`, which writes nothing, called once for each key of its arguments, however often its command is cut."""
    known: dict[object, Any] = {}

    def kept(*args: Any, **options: Any) -> Any:
        found = key(*args, **options)
        if found not in known:
            known[found] = real(*args, **options)
        return known[found]

    return kept


def cuts(command: Callable[[], object]) -> Iterator[int]:
    """Run `command` to its first change of a store and cut it, then again to the second one of that run, ...

    Yields after each cut; the last run comes to its end.
    """
    for change in range(1, 1000):
        try:
            with cut_before(change):
                command()
        except Cut:
            yield change
        else:
            return
    raise AssertionError("The command never came to its end.")
