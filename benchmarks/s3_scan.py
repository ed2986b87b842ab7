"""A scan of an S3 archive with broken objects among the good, killed half-way and repeated: does every promise hold?

    PYTHONPATH=tests python -m benchmarks.s3_scan [--objects 3000]

Starts a SeaweedFS server, uploads PNG, JPEG and DICOM images with 1 % broken objects of nine kinds, and scans them with
MKD on EfficientNet-Lite0 at 64 px (random cloner: scores need no fit to be compared).
Writes benchmarks/results/s3_scan.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scankit as kit
import torch
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage
from s3server import S3Server

from ad_jobs.index import index
from ad_jobs.results.read import read_scores
from ad_jobs.results.run import machine, versions
from ad_jobs.scoring.calibration import calibrate_on
from ad_jobs.scoring.held_out import HeldOut
from ad_jobs.scoring.model_store import write_calibration
from ad_jobs.verify import verify
from cluster import storage
from models import artifact, registry
from models.detector import InputSpec

RESULTS = Path(__file__).parent / "results"
SIZE_PX = 64


def make_model(folder: Path) -> str:
    torch.manual_seed(0)
    config = registry.configure("mkd", {})
    detector = registry.create("mkd", config, InputSpec(channels=3, height_px=SIZE_PX, width_px=SIZE_PX)).eval()
    policy = {"channels": 3, "height_px": SIZE_PX, "width_px": SIZE_PX}
    model_id = artifact.save(folder, "mkd", detector, policy, {})
    normal = (np.rint(65535 * kit.picture(n, SIZE_PX))[None].astype(np.uint16) for n in range(100))
    write_calibration(
        str(folder), calibrate_on(detector, map(HeldOut, normal), model_id=model_id, max_fpr=0.1, source="benchmark")
    )
    return str(folder)


def more_bad_objects() -> dict[str, tuple[bytes, str]]:
    """A presentation state, and a ZIP file under a picture's name."""
    state = kit.written(kit.dataset(2, GrayscaleSoftcopyPresentationStateStorage))
    return {
        "bad/presentation.dcm": (state, "not_an_image"),
        "bad/wrong_extension.jpg": (b"PK\x03\x04" + bytes(400), "unknown_format"),
    }


def scan(source: str, model: str, out: str) -> float:
    """Seconds of `retroscan scan` as a user runs it."""
    start = time.perf_counter()
    subprocess.run([*command(source, model, out)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def command(source: str, model: str, out: str) -> list[str]:
    return [sys.executable, "-m", "ad_jobs", "scan", source, "--model", model, "--out", out]


def killed(source: str, model: str, out: str) -> int:
    """Start a scan, kill -9 its driver once a few parts are committed; how many parts there were."""
    process = subprocess.Popen(command(source, model, out), stdout=subprocess.DEVNULL, start_new_session=True)
    scores = storage.join(out, "scores")
    while process.poll() is None:
        names = storage.list_names(scores) if storage.is_folder(scores) else []
        if len(names) >= 8:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return len(names)
        time.sleep(0.2)
    raise SystemExit("the scan ended before it could be killed: raise --objects")


def compare(first: pd.DataFrame, second: pd.DataFrame) -> float:
    """The largest difference of scores after asserting that everything else is equal."""
    columns = ["uri", "frame", "status", "error_code", "flagged", "content_sha256"]
    pd.testing.assert_frame_equal(first[columns].reset_index(drop=True), second[columns].reset_index(drop=True))
    return float(np.nanmax(np.abs(first["score"].to_numpy(float) - second["score"].to_numpy(float))))


def run(count: int, root: Path) -> list[str]:
    server = S3Server(root / "s3")
    os.environ.update(server.env)
    server.start()
    try:
        bad = kit.bad_objects() | more_bad_objects()
        broken = max(1, count // 100)
        good = kit.good_objects(count - broken)
        base = f"s3://{server.bucket}"
        kinds: dict[str, str] = {}
        objects: dict[str, bytes] = {f"archive/{name}": data for name, data in good.items()}
        for number in range(broken):
            name, (data, code) = list(bad.items())[number % len(bad)]
            objects[f"archive/broken/{number:04d}/{Path(name).name}"] = data
            kinds[f"{base}/archive/broken/{number:04d}/{Path(name).name}"] = str(code)
        with ThreadPoolExecutor(16) as pool:
            list(
                pool.map(
                    lambda item: server.client.put_object(Bucket=server.bucket, Key=item[0], Body=item[1]),
                    objects.items(),
                )
            )
        start = time.perf_counter()
        info = index(f"{base}/archive", f"{base}/manifest")
        index_s = time.perf_counter() - start
        gone = f"archive/{sorted(good)[len(good) // 2]}"
        # Gone since the index.
        server.client.delete_object(Bucket=server.bucket, Key=gone)
        kinds[f"{base}/{gone}"] = "not_found"
        model = make_model(root / "model")

        whole_s = scan(f"{base}/manifest", model, f"{base}/whole")
        whole = read_scores(f"{base}/whole")
        found = whole[whole.status != "scored"].set_index("uri")["error_code"].to_dict()
        assert found == kinds, {uri: (found.get(uri), code) for uri, code in kinds.items() if found.get(uri) != code}
        assert whole.object_id.nunique() == info.objects == len(objects)

        # The archive without the bad ones: a list of the good.
        listed = root / "good.csv"
        listed.write_text(
            "image\n" + "\n".join(f"{base}/archive/{n}" for n in sorted(good) if f"archive/{n}" != gone) + "\n"
        )
        scan(str(listed), model, str(root / "good-run"))
        alone = read_scores(str(root / "good-run"))
        difference = compare(whole[whole.status == "scored"], alone)

        parts = killed(f"{base}/manifest", model, f"{base}/killed")
        rest_s = scan(f"{base}/manifest", model, f"{base}/killed")
        resumed = read_scores(f"{base}/killed")
        assert not resumed.duplicated(["object_id", "frame"]).any()
        resumed_difference = compare(whole, resumed)
        checked = verify(f"{base}/killed", sample=50)
        assert checked.ok, checked.differences
        return report(locals())
    finally:
        server.stop()


def report(v: dict[str, Any]) -> list[str]:
    counts = v["whole"].drop_duplicates("object_id").status.value_counts().to_dict()
    codes = v["whole"].error_code.value_counts().to_dict()
    return [
        "# A scan from S3 with broken objects",
        "",
        f"{machine()['cpu']}, {machine()['cores']} cores, SeaweedFS on the same machine, ray {versions()['ray']}, "
        f"torch {versions()['torch']}; MKD, EfficientNet-Lite0, {SIZE_PX} px.",
        "The machine was shared with other work: times are upper bounds.",
        "",
        "| what | figure |",
        "|---|---|",
        f"| objects in the manifest | {v['info'].objects} |",
        f"| scored + failed + skipped | {counts.get('scored', 0)} + {counts.get('failed', 0)} + "
        f"{counts.get('skipped', 0)} |",
        f"| reasons | {', '.join(f'{code} {n}' for code, n in sorted(codes.items()))} |",
        "| every bad object with its expected code | yes |",
        f"| largest score difference to a scan without the bad ones | {v['difference']:.2g} |",
        f"| driver killed (-9) with so many parts written | {v['parts']} |",
        f"| largest score difference of the repeated scan to the undisturbed one | {v['resumed_difference']:.2g} |",
        "| ids, flags, statuses, codes equal; rows twice | yes; none |",
        "| verify, 50 objects scored again | no difference |",
        f"| index | {v['index_s']:.1f} s |",
        f"| whole scan, start-up included | {v['whole_s']:.0f} s |",
        f"| scan after the kill | {v['rest_s']:.0f} s |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=3000)
    count = parser.parse_args().objects
    root = Path(tempfile.mkdtemp(prefix="rs-bench-"))
    try:
        lines = run(count, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    (RESULTS / "s3_scan.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
