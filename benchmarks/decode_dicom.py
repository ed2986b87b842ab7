"""What a DICOM frame costs to decode in every form, and whether a change made that slower.

    python benchmarks/decode_dicom.py [--against CHECKOUT]

CHECKOUT is another state of this project; the two take turns, a process each, so that a busy machine is busy for both.
Prints the table and writes it to benchmarks/results/decode_dicom.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "decode_dicom.md"
# The builder of test files, which is no package.
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

SIDE_PX = 512
TURNS = 12
CALLS = 12
NOTE = """\
`before` is the state that decoded with GDCM and plug-ins of pydicom.
Lossy JPEG of 12 bits is gone through twice: the library that decodes it does not tell what is damaged."""
# In a process of its own: decodes every file a few times and prints the fastest in ms.
WORKER = """
import json, sys, time
from pathlib import Path
from ad_jobs.images.decode import decode
from ad_jobs.images.policy import Limits, PixelPolicy
policy = PixelPolicy(channels=1, height_px=128, width_px=128)
fastest = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    data, times = path.read_bytes(), []
    for _ in range(int(sys.argv[2])):
        start = time.perf_counter()
        decode(data, policy, Limits())
        times.append(time.perf_counter() - start)
    fastest[path.name] = min(times) * 1000
print(json.dumps(fastest))
"""


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn")
    other = parser.parse_args().against
    checkouts = {"before": other.resolve(), "after": ROOT} if other else {"ms": ROOT}
    best: dict[str, dict[str, float]] = {name: {} for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        for _ in range(TURNS):
            for name, checkout in checkouts.items():
                for file, ms in measured(checkout, folder).items():
                    best[name][file] = min(ms, best[name].get(file, ms))
    text = table(best)
    print(text)
    RESULT.write_text(text)


def write_files(folder: Path) -> None:
    """A frame in every form: a smooth field with grain, as radiographs are; grey of 12 bits, and colour of 8."""
    import dicomkit as kit

    from benchmarks.decode import field

    colour = field(SIDE_PX, 3)
    grey = (colour[..., 0] >> 4).astype(np.uint16)
    shown = {"WindowCenter": "2000", "WindowWidth": "3000", "RescaleSlope": "1", "RescaleIntercept": "-1024"}
    for form in kit.FORMS:
        (folder / f"grey 12, {form}").write_bytes(kit.in_form(kit.dataset(grey, bits=12, **shown), form))
        rgb = kit.dataset(
            (colour >> 8).astype(np.uint8), PhotometricInterpretation="YBR_FULL" if form == "jpeg" else "RGB"
        )
        (folder / f"colour 8, {form}").write_bytes(kit.in_form(rgb, form))
    small = kit.dataset((colour[..., 0] >> 8).astype(np.uint8))
    (folder / "grey 8, jpeg").write_bytes(kit.in_form(small, "jpeg"))


def measured(checkout: Path, folder: str) -> dict[str, float]:
    """The fastest call for each file, in ms, by the code of a checkout."""
    command = [sys.executable, "-W", "ignore", "-c", WORKER, folder, str(CALLS)]
    env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, cwd=checkout, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(best: dict[str, dict[str, float]]) -> str:
    """Markdown: a row a file, a column a checkout, and how they compare."""
    from benchmarks.decode import machine

    names = list(best)
    compared = len(names) == 2
    lines = [
        "# Decoding DICOM",
        "",
        f"{machine()}; a frame of {SIDE_PX} x {SIDE_PX} from its bytes to 128 x 128, one thread, fastest of "
        f"{TURNS * CALLS} in {TURNS} processes{', in turn' if compared else ''}; load average "
        f"{os.getloadavg()[0]:.1f}.",
        "",
        f"| frame | {' | '.join(f'{name} ms' if compared else name for name in names)} |"
        f"{' change |' if compared else ''}",
        f"|---|{'---:|' * (len(names) + compared)}",
    ]
    for file in sorted(best[names[0]]):
        values = [best[name][file] for name in names]
        change = f" {100 * (values[-1] / values[0] - 1):+.1f} % |" if compared else ""
        lines.append(f"| {file} | {' | '.join(f'{value:.2f}' for value in values)} |{change}")
    return "\n".join([*lines, "", NOTE, ""])


if __name__ == "__main__":
    main()
