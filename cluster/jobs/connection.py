"""The way to a cluster's dashboard: which address, with which token, and what is said where nothing answers."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from cluster.errors import ClusterError, token_refused

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
# For a first word from the address.
ANSWER_S = 5.0


def named_address(address: str | None) -> str | None:
    """The address as it is given, or for none and `auto` as the environment has it, if it has one."""
    if address not in (None, "auto"):
        return address
    return next(filter(None, map(os.environ.get, ADDRESS_VARIABLES)), None)


def connect(address: str | None) -> Any:
    """Ray's client of the dashboard at the address; see `cluster.jobs.client.Jobs` for what an address is.

    Raises:
        ClusterError: nothing answers there, or it takes no token of ours.
    """
    asked = named_address(address) or address or DEFAULT_ADDRESS
    headers = _authorization()
    _hush()
    with answers(asked), _only_by_argument():
        return JobSubmissionClient(_reachable(asked), headers=headers)


@contextmanager
def answers(address: str) -> Iterator[None]:
    """A block in which whatever Ray's client raises becomes a ClusterError about the address."""
    try:
        yield
    except AuthenticationError as error:
        raise token_refused(shown(address), str(error).splitlines()[0]) from error
    except RuntimeError as error:
        # The client's answer to any other HTTP status; with a traceback, what it ends with.
        *_, reason = (line for line in str(error).splitlines() if line.strip(". "))
        raise ClusterError(
            f"The cluster refused. Got: address {shown(address)}, {reason}",
            "See `retroscan jobs`, and the logs of the cluster's dashboard.",
        ) from error
    except (OSError, ValueError, KeyError) as error:
        # The errors of requests are OSErrors; the others: it is no dashboard.
        raise ClusterError(
            f"No Ray cluster answers. Got: address {shown(address)} ({type(error).__name__}: {error}).",
            "Give the dashboard's --address, http://HEAD:8265, or set RAY_ADDRESS to it; a cluster on Kubernetes is "
            "reached through `kubectl port-forward service/NAME-head-svc 8265`.",
        ) from error


def shown(address: str) -> str:
    """The address for people: without a password."""
    scheme, separator, rest = address.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _reachable(address: str) -> str:
    """The address as Ray takes it, once something listens there; Ray itself would wait for minutes."""
    if address == "auto":
        return address
    scheme, separator, _ = address.partition("://")
    if separator and scheme not in ("http", "https"):
        raise ClusterError(
            f"Jobs go to a cluster's dashboard. Got: address {shown(address)}.",
            "Give --address http://HEAD:8265, or set RAY_ADDRESS to that.",
        )
    parts = urlsplit(address if separator else f"//{address}")
    port = parts.port or (443 if scheme == "https" else 80)
    with socket.create_connection((parts.hostname or "", port), ANSWER_S) as connection:
        if separator:
            return address
        connection.settimeout(ANSWER_S)
        connection.sendall(b"GET /api/version HTTP/1.0\r\n\r\n")
        if connection.recv(5) == b"HTTP/":
            return f"http://{address}"
    # The cluster's own port, where Ray asks for the dashboard's.
    return address


def _authorization() -> dict[str, str]:
    """The header with the token that the environment names; Ray by itself sends one under RAY_AUTH_MODE=token alone."""
    token, path = os.environ.get("RAY_AUTH_TOKEN"), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not token and path:
        try:
            token = Path(path).read_text().strip()
        except OSError as error:
            raise ClusterError(
                f"RAY_AUTH_TOKEN_PATH must name a readable file. Got: {path} ({error.strerror}).",
                "Write the cluster's token into it, or set RAY_AUTH_TOKEN.",
            ) from error
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextmanager
def _only_by_argument() -> Iterator[None]:
    """A block in which an address given to Ray's client is not overridden by the environment."""
    before = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _hush() -> None:
    """Keep from the log how Ray's client finds its way and packs what it sends."""
    for name in (
        "ray.dashboard.modules.dashboard_sdk",
        "ray.dashboard.modules.job.sdk",
        "ray._private.authentication.http_token_authentication",
        "ray._private.runtime_env.packaging",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
