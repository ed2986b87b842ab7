"""Errors cross process borders whole."""

from __future__ import annotations

import pickle

import pytest

from cluster.errors import (
    AccessDenied,
    ClusterError,
    Exists,
    Full,
    KeysRefused,
    NotFound,
    StorageError,
    TooLarge,
    Unreachable,
)


@pytest.mark.parametrize(
    "kind", [StorageError, NotFound, AccessDenied, KeysRefused, Unreachable, Exists, Full, TooLarge]
)
def test_a_storage_error_survives_pickling(kind: type[StorageError]) -> None:
    error = pickle.loads(pickle.dumps(kind("s3://b/k", "why")))
    assert type(error) is kind
    assert (error.uri, error.detail, str(error)) == ("s3://b/k", "why", "s3://b/k: why")


def test_a_cluster_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ClusterError("no answer", "look")))
    assert (error.problem, error.remedy, str(error)) == ("no answer", "look", "no answer look")
