"""`python -m ad_jobs`: the command line without the console script, and what a job on a cluster runs."""

from cluster.jobs import environment

environment.receive()

from ad_jobs.cli.app import run  # noqa: E402 - what was sent comes before whatever may read the environment

run()
