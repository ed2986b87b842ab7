"""`retroscan submit` and `retroscan jobs`: any verb as a Ray job on a running cluster.

A request is checked here, as far as this machine can, before anything is sent: the verb, its options (a `--config` file
is resolved into them) and its places.
Its id comes from what is asked and the code that is to do it, so that the same command follows a job that runs or ran
already, and continues one that failed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ad_jobs.errors import UsageError
from ad_jobs.values import MANIFEST, REVIEWS, place
from cluster.jobs import Job, Jobs, code, named_address
from cluster.storage import uris

log = logging.getLogger("retroscan.submit")

PACKAGES = ("ad_jobs", "cluster", "models", "retroscan")
NOT_AS_A_JOB = ("submit", "jobs", "review")
# Parameters that name something on a disk or in S3.
PLACES = frozenset(
    {
        "source",
        "out",
        "normal",
        "anomalous",
        "model",
        "run",
        "folder",
        "run_a",
        "run_b",
        "since",
        "labels",
        "worklist",
        "from_reviews",
        "images",
        "identifiers_key",
        "key",
        "manifest_out",
        "manifest",
    }
)
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


class Request(NamedTuple):
    """A verb as it is to run on the cluster: its options and arguments, and the places they name."""

    verb: str
    words: tuple[str, ...]
    places: tuple[str, ...]


class Outcome(NamedTuple):
    """A job that was asked for, and whether this very call has submitted it."""

    job: Job
    submitted: bool


def parse(verbs: Mapping[str, Any], words: Sequence[str], *, here: bool) -> Request:
    """The request in `words`, a verb with its arguments, checked as the verb itself would check them.

    Args:
        verbs: the command line's commands by name.
        words: the verb's name first.
        here: whether the cluster is on this machine, where a relative path means what it means to the caller.

    Raises:
        UsageError: no verb or none that can be a job, an address of its own, a place that no cluster can have.
    """
    possible = sorted(set(verbs) - set(NOT_AS_A_JOB))
    if not words or words[0] not in possible:
        raise UsageError(
            "submit takes a verb and its arguments.",
            repr(words[0]) if words else "none",
            f"Write retroscan submit -- VERB ARGS... with one of {', '.join(possible)}.",
        )
    verb, command = words[0], verbs[words[0]]
    # Reports what is wrong with the verb's own arguments, and ends after its --help, as the verb itself does.
    context = command.make_context(verb, list(words[1:]))
    options: list[str] = []
    arguments: list[str] = []
    places: list[str] = []
    for parameter in command.params:
        name, value = parameter.name, context.params.get(parameter.name)
        if name == "address":
            if value not in (None, "auto"):
                raise UsageError(
                    "A job runs on the cluster that it is sent to.",
                    f"--address {value} after {verb}",
                    f"Write retroscan submit --address URL -- {verb} ...",
                )
            options.append("--address=auto")
            continue
        # `reviews` stands for what lies in the run itself.
        is_place = name in PLACES and value is not None and (name, value) != ("labels", REVIEWS)
        given = context.get_parameter_source(name).name != "DEFAULT"
        if name in ("config", "help") or not (given or is_place):
            continue
        texts = [_text(one) for one in (value if isinstance(value, list | tuple) else [value])]
        if is_place:
            texts = [_place(text, verb, here=here) for text in texts]
            places += texts
        if parameter.param_type_name == "argument":
            arguments += texts
        elif parameter.is_flag:
            options += [parameter.opts[0]] if value else []
        else:
            options += [f"{parameter.opts[0]}={text}" for text in texts]
    return Request(verb, (*options, *(["--", *arguments] if arguments else [])), tuple(places))


def on_this_machine(address: str | None) -> bool:
    """Whether a cluster's address names this machine; a tunnel to another one cannot be told from it."""
    address = named_address(address) or "auto"
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    return host in ("auto", "localhost", "::1", socket.gethostname()) or host.startswith("127.")


def values_of(names: Sequence[str]) -> dict[str, str]:
    """The variables to send, with their values; raises UsageError for a name that is none or is not set."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UsageError(
                "--env takes the name of a variable alone: a value in a command is seen by others.",
                f"{name.partition('=')[0]}=..." if "=" in name else repr(name),
                "Export the variable, and write --env NAME.",
            )
        if name not in os.environ:
            raise UsageError("--env names a variable that is set here.", f"{name}, not set", "Export it first.")
    return {name: os.environ[name] for name in names}


def submit(
    request: Request,
    *,
    address: str | None = None,
    submission_id: str | None = None,
    names: Sequence[str] = (),
    detach: bool = False,
) -> Outcome:
    """The job that does what is requested: a new one, or the one that does or did it already.

    Its log goes to stderr until it is over, and for one that is over already; nothing is waited for with `detach`.

    Args:
        request: what to run.
        address: the cluster; see `cluster.jobs.Jobs`.
        submission_id: the job's id; by default it comes from the request and the code.
        names: variables of this process that the job gets; their values are shown nowhere, see `jobs.environment`.
        detach: return as soon as the cluster has the job.

    Raises:
        UsageError: a name or an id that cannot be.
        ClusterError: no cluster answers, or it refuses.
    """
    values = values_of(names)
    packages = [_package(name) for name in PACKAGES]
    wanted = submission_id or _id_of(request, code.digest(packages))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", wanted):
        raise UsageError(
            "--submission-id is of letters, digits, dots, dashes and underscores, 100 at most.",
            repr(wanted),
            "Shorten it.",
        )
    _warn(request, names, here=on_this_machine(address))
    jobs = Jobs(address)
    job_id, is_new = jobs.submit(
        wanted,
        shlex.join(["python", "-m", "ad_jobs", request.verb, *request.words]),
        packages,
        metadata={"verb": request.verb},
        values=values,
    )
    log.info("Job %s %s %s.", job_id, "is submitted to" if is_new else "is known already to", jobs.address)
    if detach:
        return Outcome(jobs.get(job_id), is_new)
    try:
        job = jobs.follow(job_id, _to_stderr)
    except KeyboardInterrupt:
        log.warning("Job %s goes on without this terminal; `retroscan jobs --stop %s` ends it.", job_id, job_id)
        raise
    if not is_new and job.exit_code == 0:
        log.info("Job %s had succeeded before; another --submission-id would run it again.", job_id)
    return Outcome(job, is_new)


def exit_code(job: Job) -> int:
    """What a process that stands for the job ends with: its driver's exit code, 1 where it has none."""
    if job.exit_code is None:
        return 0 if job.status == "SUCCEEDED" or not job.over else 1
    # Of a signal, as a shell has it.
    return job.exit_code if job.exit_code >= 0 else 128 - job.exit_code


def as_json(job: Job) -> dict[str, Any]:
    """The job as plain values."""
    return {
        "id": job.id,
        "status": job.status,
        "verb": job.metadata.get("verb"),
        "started": job.started.isoformat() if job.started else None,
        "ended": job.ended.isoformat() if job.ended else None,
        "exit_code": job.exit_code,
        "message": job.message,
        "command": job.command,
    }


def _text(value: object) -> str:
    return str(value.value if isinstance(value, Enum) else value)


def _place(text: str, verb: str, *, here: bool) -> str:
    """A place as the cluster will find it."""
    if text.startswith(MANIFEST):
        return MANIFEST + _place(text.removeprefix(MANIFEST), verb, here=here)
    if uris.is_s3(text) or text.startswith(uris.FILE) or Path(text).is_absolute():
        return text
    if not here:
        raise UsageError(
            "A relative path means nothing on another machine.",
            f"{text} for {verb}",
            "Name an s3:// prefix, or an absolute path that every node of the cluster has.",
        )
    return place(text)


def _warn(request: Request, names: Sequence[str], *, here: bool) -> None:
    places = [place.removeprefix(MANIFEST) for place in request.places]
    local = [place for place in places if not uris.is_s3(place)]
    if local and not here:
        log.warning("%s must exist on every node of the cluster: nothing but code is sent along.", " and ".join(local))
    unsent = [name for name in _ENDPOINTS if name in os.environ and name not in names]
    if unsent and len(local) < len(request.places):
        log.warning(
            "%s is set here and not sent: the job goes to the endpoint that its nodes know. --env %s sends it.",
            unsent[0],
            unsent[0],
        )


def _id_of(request: Request, code: str) -> str:
    asked = json.dumps([request.verb, request.words, code])
    return f"retroscan-{request.verb}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"


def _package(name: str) -> Path:
    """The folder of a package of this project, wherever it is imported from."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ImportError(f"{name} is not installed as a folder of files", name=name)
    return Path(found.origin).parent


def _to_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
