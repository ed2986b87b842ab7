"""`python -m ad_jobs`: the command line without the console script, and what a job on a cluster runs."""

from cluster import sent

sent.receive()

from ad_jobs.cli import main  # noqa: E402 - what was sent comes before whatever may read the environment

main()
