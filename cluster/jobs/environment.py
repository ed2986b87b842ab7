"""Values that a caller sends along with a job, kept out of all that Ray shows and logs of one.

What stands in a job's runtime environment as `env_vars` is no place for a secret: the jobs API hands it to whoever
holds the cluster's token (only browsers are shown stars), and Ray writes it into its logs on every node.
So the values travel as a file beside the job's code, of mode 0600.
The job's driver takes the file in and deletes it (`receive`) before it does anything else; from then on Ray's own hook
on `ray.init` (`withhold`) takes the values out of what the driver tells its workers, and hands them over by a function
that each worker runs as it starts.

What remains, and to whom: the head holds in its memory the package that the file came in, until some minutes after the
job, and the workers' function, until the driver ends (if that is killed, until the cluster ends).
With Redis behind the head, Redis holds both.
To read them takes the cluster's token, or the account that Ray runs under; who has either may run jobs, and could read
the environment of this job's processes just as well.
On its way the package is as safe as the connection: in the clear over http://, as the token itself is.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

# Beside the packages of a job's code.
FILE = ".sent.json"
# The name space in which Ray keeps what workers load.
_FUNCTIONS = b"fun"
_ROOT = Path(__file__).resolve().parents[2]

_received: dict[str, str] = {}


def pack(folder: Path, values: Mapping[str, str]) -> None:
    """Write `values`, variables by name, into the folder that will be a job's working directory."""
    # Ray names a package by a digest of its content: the random part keeps values from being guessed by it, and a
    # package from being taken for an earlier one, whose file is deleted already.
    content = {"values": dict(values), "random": secrets.token_hex(16)}
    path = folder / FILE
    path.touch(0o600, exist_ok=False)
    path.write_text(json.dumps(content))


def receive() -> None:
    """Take in what was sent along with this job, if anything was: for this process, and for Ray's workers after it."""
    path = _ROOT / FILE
    if not path.exists():
        return
    values = json.loads(path.read_text())["values"]
    path.unlink()
    _received.update(values)
    os.environ.update(values)
    os.environ["RAY_RUNTIME_ENV_HOOK"] = f"{withhold.__module__}.{withhold.__qualname__}"


def withhold(runtime_env: dict[str, Any] | None) -> dict[str, Any]:
    """The runtime environment with which Ray is to start a driver's workers: as given, without what was received."""
    kept = dict(runtime_env or {})
    told = kept.get("env_vars") or {}
    kept["env_vars"] = {name: value for name, value in told.items() if name not in _received}
    mark = secrets.token_hex(16)
    kept["worker_process_setup_hook"] = _giver(dict(_received), mark)
    atexit.register(_forget, mark)
    # Packed anew: the package that the driver came in holds the file, and would be unpacked on every node.
    kept["working_dir"] = str(_ROOT)
    return kept


def _giver(values: dict[str, str], mark: str) -> Callable[[], None]:
    # Nested, so that it is pickled with the values in it, and with the mark that `_forget` knows it by.
    def give(mark: str = mark) -> None:
        del mark
        os.environ.update(values)

    return give


def _forget(mark: str) -> None:
    """Delete the workers' function from the head's memory: Ray, which knows no job yet as it stores it, never does."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import RpcError

    try:
        # Ray sets the variable for a job's driver.
        head = GcsClient(address=os.environ["RAY_ADDRESS"])
        for key in head.internal_kv_keys(b"", _FUNCTIONS):
            if b"FunctionsToRun" in key and mark.encode() in (head.internal_kv_get(key, _FUNCTIONS) or b""):
                head.internal_kv_del(key, False, _FUNCTIONS)
    except RpcError as error:
        log.warning("What was sent could not be deleted from the cluster's head: %s", error)
