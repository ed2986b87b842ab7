"""What the tests of whole runs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from s3server import S3Server

from cluster.session import session


@pytest.fixture(scope="module")
def one_ray(s3: S3Server) -> Iterator[None]:
    """One Ray for all tests of a module; it knows the store."""
    del s3
    with session(num_cpus=2):
        yield
