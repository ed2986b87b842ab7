"""What Ray raises for its workers comes as the error of one of them, or as one sentence with a remedy."""

import pytest
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from cluster.errors import ClusterError
from cluster.failures import failures


class Refused(Exception):
    """A worker's own word."""


def of_a_task(cause: Exception) -> RayError:
    return RayTaskError("fetch", "Traceback ...", cause, proctitle="", pid=1, ip="")


def test_a_workers_own_error_comes_as_itself() -> None:
    with pytest.raises(Refused, match="no room"), failures("scan", Refused):
        raise of_a_task(Refused("no room"))


def test_of_an_error_of_both_kinds_the_workers_words_are_told() -> None:
    both = RayTaskError("fetch", "Traceback ...", Refused("no room"), proctitle="", pid=1, ip="").as_instanceof_cause()
    assert isinstance(both, Refused)
    with pytest.raises(Refused) as caught, failures("scan", Refused):
        raise both
    assert str(caught.value) == "no room"


def test_memory_that_ran_out_is_one_sentence_with_a_remedy() -> None:
    with pytest.raises(ClusterError) as caught, failures("scan", Refused):
        raise OutOfMemoryError("3 worker(s) were killed due to the node running low on memory.\nOOM kill reason: ...")
    assert caught.value.problem == "Ray ended workers of the scan, as the memory of their node ran out."
    assert caught.value.remedy.startswith("Give the node more memory")
    assert "\n" not in str(caught.value)


def test_other_failures_name_their_kind_and_last_line() -> None:
    with pytest.raises(ClusterError, match=r"The fit's workers failed: ValueError: second\."), failures("fit"):
        raise of_a_task(ValueError("first\nsecond"))


def test_what_is_not_rays_passes() -> None:
    with pytest.raises(KeyError), failures("scan", Refused):
        raise KeyError
