"""What can go wrong with an object, whatever the store, and with the cluster.

ClusterError        no usable Ray
StorageError
├── NotFound        no such object, folder or bucket
├── AccessDenied    the store refuses the object, or:
│   └── KeysRefused the store refuses these credentials for whatever they ask, or there are none
├── Unreachable     the store did not answer, or answered with a server error, after all retries
├── Exists          there is an object already where a new one was to be
├── Full            no room is left
└── TooLarge        larger than the caller allows; nothing of it was read
"""


class StorageError(Exception):
    """A store could not do what it was asked: `uri` and `detail` say what and why."""

    def __init__(self, uri: str, detail: str) -> None:
        super().__init__(uri, detail)
        self.uri = uri
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.uri}: {self.detail}"


class NotFound(StorageError):
    """There is no such object, folder or bucket."""


class AccessDenied(StorageError):
    """The store refuses the object to these credentials."""


class KeysRefused(AccessDenied):
    """The store refuses these credentials for whatever they ask (unknown, expired, wrong), or there are none."""


class Unreachable(StorageError):
    """The store did not answer, or answered with a server error, after all retries."""


class Exists(StorageError):
    """There is an object already where a new one was to be."""


class Full(StorageError):
    """No room is left: the disk, the quota or the store is full."""


class TooLarge(StorageError):
    """The object is larger than the caller allows; its body was not read."""


class ClusterError(Exception):
    """No usable Ray: what went wrong, and the remedy."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}"


def token_refused(address: str, reason: str) -> ClusterError:
    """The error of a cluster that takes no token of ours."""
    return ClusterError(
        f"The cluster takes only those with its token. Got: address {address}, {reason.removesuffix('.')}.",
        "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token, or RAY_AUTH_TOKEN to "
        "the token itself.",
    )
