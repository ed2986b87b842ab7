"""The verbs that speak to a cluster, or look at a machine: submit, jobs, doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from ad_jobs.cli import options as o
from ad_jobs.cli import show
from ad_jobs.cli.show_cluster import checks_text, jobs_text
from ad_jobs.specs import DoctorSpec


def submit(
    context: typer.Context,
    words: Annotated[
        list[str] | None, typer.Argument(help="Verb and its arguments.", metavar="VERB ARGS...", show_default=False)
    ] = None,
    address: o.Dashboard = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME", help="Variable to send along, repeatable; its value is shown nowhere."),
    ] = None,
    submission_id: Annotated[
        str | None, typer.Option(help="Id of the job; by default it comes from VERB, ARGS and the code.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the id as soon as the cluster has the job.")] = False,
    json_: o.Json = False,
) -> None:
    """Run any verb as a Ray job on a cluster, and end with its exit code. Run again to follow it, or to continue."""
    from ad_jobs import submit as verb

    verbs = context.parent.command.commands  # type: ignore[union-attr]
    request = verb.parse(verbs, words or [], here=verb.on_this_machine(address))
    job, submitted = verb.submit(
        request, address=address, submission_id=submission_id, names=names or [], detach=detach
    )
    show.result(
        {**verb.as_json(job), "submitted": submitted},
        json_,
        lambda v: v["id"] if detach else f"job {v['id']} {v['status'].lower()}, exit code {verb.exit_code(job)}",
    )
    if not detach:
        raise typer.Exit(verb.exit_code(job))


def jobs(
    address: o.Dashboard = None,
    stop: Annotated[str | None, typer.Option(help="End this job instead.", metavar="ID")] = None,
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """The jobs of a cluster, the latest first."""
    from ad_jobs.submit import as_json
    from cluster.jobs import Jobs

    cluster = Jobs(address)
    if stop is None:
        show.result([as_json(job) for job in cluster.list()], json_, jobs_text)
        return
    stopped = cluster.stop(stop)
    show.result(
        {"id": stop, "stopped": stopped},
        json_,
        lambda v: f"job {v['id']} {'is being stopped' if v['stopped'] else 'was over already'}",
    )


def doctor(
    context: typer.Context,
    address: o.Dashboard = None,
    bucket: Annotated[str | None, typer.Option(help="Bucket in which to look whether S3 answers.")] = None,
    json_: o.Json = False,
    config: o.Config = None,
) -> None:
    """What is here and what is missing: packages, decoders, memory, disks, credentials, S3, Ray.

    Exit 1 if anything is missing.
    """
    spec = o.given(DoctorSpec, context)
    from ad_jobs.doctor import MISSING
    from ad_jobs.doctor import doctor as verb

    checks = [check._asdict() for check in verb(spec)]
    healthy = all(check["status"] != MISSING for check in checks)
    show.result({"ok": healthy, "checks": checks}, json_, lambda v: checks_text(v["checks"]))
    if not healthy:
        raise typer.Exit(1)
