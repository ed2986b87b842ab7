"""How many images per second a cluster scans, what limits it, and what an archive costs: predicted, and checked here.

    PYTHONPATH=tests python -m benchmarks.capacity [--config FILE] [--run RUN ...] [--check] [--work FOLDER]

Predicts for the clusters and archives of the config, from the costs that benchmarks.stage_costs measured and, with
`--run`, from finished runs.
`--check` scans on this machine's cores and on logical nodes, and sets what was predicted beside it.
Writes benchmarks/results/capacity.md, unless config or runs are your own.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import yaml

from benchmarks.capacity_check import CASES, check, key
from benchmarks.capacity_page import page
from benchmarks.stage_costs import RESULT as COSTS

RESULTS = Path(__file__).parent / "results"
CONFIG = Path(__file__).parent / "capacity.yaml"
CHECK = RESULTS / "capacity" / "check.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--run", action="append", default=[], help="a finished run whose costs are used too")
    parser.add_argument("--check", action="store_true", help="scan here, where that is not done yet")
    parser.add_argument("--only", default="", help="check only cases whose name contains this text")
    parser.add_argument("--work", type=Path, default=Path("build/scan"))
    given = parser.parse_args()
    checked = json.loads(CHECK.read_text()) if CHECK.exists() else {}
    if given.check:
        work = given.work.resolve()
        work.mkdir(parents=True, exist_ok=True)
        for case in CASES:
            if key(case) in checked or given.only not in key(case):
                continue
            start = time.perf_counter()
            checked[key(case)] = check(case, work)
            CHECK.write_text(json.dumps(checked, indent=1) + "\n")
            print(key(case), f"{time.perf_counter() - start:.0f} s", checked[key(case)]["images_per_s"], flush=True)
    lines = page(yaml.safe_load(given.config.read_text()), json.loads(COSTS.read_text()), checked, given.run)
    # Else it is a user's own.
    if given.config == CONFIG and not given.run:
        (RESULTS / "capacity.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
