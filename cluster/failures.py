"""What Ray raises for its workers, as the error that one of them raised, or as one sentence with a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import OutOfMemoryError, RayError

from cluster.errors import ClusterError

OUT_OF_MEMORY = "Ray ended workers of the {what}, as the memory of their node ran out."
MORE_MEMORY = (
    "Give the node more memory or let fewer workers share it, and run the same command again: it continues from here."
)


@contextmanager
def failures(what: str, *own: type[Exception]) -> Iterator[None]:
    """A block in which a RayError becomes the exception of a worker that is one of `own`, or a ClusterError.

    `what` the workers were of, for the sentence: "scan", "fit".
    """
    try:
        yield
    except RayError as error:
        for one in chain(error):
            # Ray makes a class of both kinds, whose words are a traceback: those of its cause are ours.
            if isinstance(one, own) and not isinstance(one, RayError):
                raise one from error
        raise of_workers(error, what) from error


def of_workers(error: BaseException, what: str) -> ClusterError:
    """That the workers failed, and why."""
    if any(isinstance(one, OutOfMemoryError) for one in chain(error)):
        return ClusterError(OUT_OF_MEMORY.format(what=what), MORE_MEMORY)
    *_, last = chain(error)
    lines = str(last).strip().splitlines()
    return ClusterError(
        f"The {what}'s workers failed: {type(last).__name__}: {lines[-1] if lines else 'no message'}.",
        "Run the same command again: it continues from here.",
    )


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those it came from, innermost last: Ray wraps a worker's error several times over."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = getattr(found, "cause", None) or found.__cause__
