"""`python -m ad_jobs`: the command line without the console script."""

from ad_jobs.cli import main

main()
