"""demo: a phantom DICOM archive through every verb. What it does is what a user's first project does."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from ad_jobs.calibrate import calibrate
from ad_jobs.errors import JobError, UsageError
from ad_jobs.evaluate import evaluate
from ad_jobs.fit import fit
from ad_jobs.index import index
from ad_jobs.phantom import generate
from ad_jobs.report import report
from ad_jobs.scan import scan
from ad_jobs.specs import DemoSpec, takes
from ad_jobs.verify import verify
from cluster.session import session

log = logging.getLogger("retroscan.demo")


@takes(DemoSpec)
def demo(spec: DemoSpec) -> dict[str, Any]:
    """The phantoms' metrics and where the report lies; everything is below the folder `spec.out`.

    Raises:
        UsageError: the folder is on S3, or holds something else.
        JobError: the finished run does not verify.
    """
    if "://" in spec.out:
        raise UsageError("The demo writes its phantoms to a local folder.", spec.out, "Name one with --out demo.")
    root = Path(spec.out).resolve()
    phantoms = root / "phantoms"
    if not phantoms.exists():
        log.info("1/7 making a phantom archive in %s", phantoms)
        # Renamed when whole: an interrupted demo begins it anew.
        unfinished = root / "phantoms.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        generate(unfinished, seed=spec.seed)
        unfinished.rename(phantoms)
    archive, train, calibration = (str(phantoms / name) for name in ("archive", "train", "calibration"))
    manifest, model, run = (str(root / name) for name in ("manifest", "model", "run"))
    # One Ray for the fit and the scan.
    with session():
        log.info("2/7 index")
        index(source=archive, out=manifest, headers=True)
        log.info("3/7 fit FYD on %s", train)
        fit(detector="fyd", normal=train, out=model, seed=spec.seed)
        log.info("4/7 calibrate on other patients")
        calibrate(model=model, normal=calibration, max_fpr=0.05)
        log.info("5/7 scan")
        record = scan(source=manifest, model=[model], out=run, heatmaps="all")
    log.info("6/7 evaluate and report")
    evaluation = evaluate(run=run, labels=str(phantoms / "labels.csv"), seed=spec.seed)
    page = report(run=run)
    log.info("7/7 verify")
    found = verify(run=run, sample=20, seed=spec.seed)
    if not found.ok:
        raise JobError("The demo's run does not verify: " + "; ".join(found.differences))
    return {"counts": record.counts.model_dump(mode="json"), "evaluation": evaluation, "report": page}
