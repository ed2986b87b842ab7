"""`retroscan demo`: a phantom DICOM archive through every verb. What it does is what a user's first project does."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from ad_jobs.calibrate import calibrate
from ad_jobs.cli.options import FitSpec
from ad_jobs.errors import JobError, UsageError
from ad_jobs.evaluate import evaluate
from ad_jobs.fit import fit
from ad_jobs.index import index
from ad_jobs.phantom import generate
from ad_jobs.report import report
from ad_jobs.scan import scan
from ad_jobs.verify import verify
from cluster.session import session

log = logging.getLogger("retroscan.demo")


def demo(out: str, *, seed: int = 0) -> dict[str, Any]:
    """The phantoms' metrics and where the report lies; everything is below the folder `out`.

    Raises:
        UsageError: `out` is on S3, or holds something else.
        JobError: the finished run does not verify.
    """
    if "://" in out:
        raise UsageError("The demo writes its phantoms to a local folder.", out, "Name one with --out demo.")
    root = Path(out).resolve()
    phantoms = root / "phantoms"
    if not phantoms.exists():
        log.info("1/7 making a phantom archive in %s", phantoms)
        unfinished = root / "phantoms.unfinished"  # renamed when whole: an interrupted demo begins it anew
        shutil.rmtree(unfinished, ignore_errors=True)
        generate(unfinished, seed=seed)
        unfinished.rename(phantoms)
    with session():  # one Ray for the fit and the scan
        log.info("2/7 index")
        index(str(phantoms / "archive"), str(root / "manifest"), headers=True)
        log.info("3/7 fit MKD on %s", phantoms / "train")
        fit(
            FitSpec(
                detector="mkd",
                normal=str(phantoms / "train"),
                out=str(root / "model"),
                options={"epochs": 40},
                seed=seed,
            )
        )
        log.info("4/7 calibrate on other patients")
        calibrate(str(root / "model"), normal=str(phantoms / "calibration"), max_fpr=0.05)
        log.info("5/7 scan")
        record = scan(
            str(root / "manifest"),
            [str(root / "model")],
            str(root / "run"),
            heatmaps="all",
            config={"verb": "demo", "seed": seed},
        )
    log.info("6/7 evaluate and report")
    evaluation = evaluate(str(root / "run"), str(phantoms / "labels.csv"), seed=seed)
    page = report(str(root / "run"))
    log.info("7/7 verify")
    found = verify(str(root / "run"), sample=20, seed=seed)
    if not found.ok:
        raise JobError("The demo's run does not verify: " + "; ".join(found.differences))
    return {"counts": record.counts.model_dump(mode="json"), "evaluation": evaluation, "report": page}
