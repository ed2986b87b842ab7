"""Damaged images for the decoders, for as long as you like: nothing may come back but frames or an error code.

    python -m benchmarks.fuzz FOLDER [FOLDER ...] [--minutes 10] [--seed 0] [--keep build/fuzz]

Every file below the folders that decodes is damaged again and again: bytes and 32-bit fields overwritten, pieces cut
out, doubled, exchanged with those of another file, ends cut off.
Objects that killed the decoder's process, or ran into its time limit, are no fault of a scan (their rows say so), but
are kept to be looked at.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.run import machine

RESULTS = Path(__file__).parent / "results" / "fuzz.md"
POLICY = PixelPolicy(channels=3, height_px=64, width_px=64)
LIMITS = Limits(max_pixels=20_000_000, max_frames=200, timeout_s=5.0)
# Larger ones make few rounds a minute.
LARGEST_BYTES = 400_000
EXTREMES = (0, 1, 0x7F, 0x80, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF)
WORTH_A_LOOK = {ErrorCode.DECODE_TIMEOUT, ErrorCode.DECODER_CRASHED}


def damaged(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """`data` after one to four damages; half of them lie in its first 2 KiB, where the headers are."""
    found = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        end = len(found) if rng.random() < 0.5 else min(len(found), 2048)
        place = int(rng.integers(0, max(1, end)))
        length = int(rng.integers(1, 65))
        match rng.integers(6):
            case 0:
                found[place : place + 1] = rng.bytes(1)
            case 1:
                field = EXTREMES[rng.integers(len(EXTREMES))]
                found[place : place + 4] = field.to_bytes(4, "little" if rng.random() < 0.5 else "big")
            case 2:
                del found[place : place + length]
            case 3:
                found[place:place] = found[place : place + length]
            case 4:
                start = int(rng.integers(0, max(1, len(other) - length)))
                found[place : place + length] = other[start : start + length]
            case _:
                del found[max(1, place) :]
    return bytes(found)


def seeds(folders: list[Path], decoder: GuardedDecoder) -> dict[str, bytes]:
    """The files that decode, by name."""
    found = {}
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        if path.stat().st_size <= LARGEST_BYTES:
            try:
                decoder.decode(path.read_bytes(), POLICY, LIMITS)
            except ImageError:
                continue
            found[path.name] = path.read_bytes()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"))
    given = parser.parse_args()
    given.keep.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(given.seed)
    outcomes: Counter[str] = Counter()
    peak = 0
    with GuardedDecoder() as decoder:
        files = seeds(given.folders, decoder)
        names = sorted(files)
        until = time.monotonic() + 60 * given.minutes
        while time.monotonic() < until:
            name, other = (names[rng.integers(len(names))] for _ in range(2))
            data = damaged(files[name], files[other], rng)
            try:
                decoder.decode(data, POLICY, LIMITS)
                outcomes["frames"] += 1
            except ImageError as error:
                # Anything else is what is looked for, and ends this.
                outcomes[error.code] += 1
                if error.code in WORTH_A_LOOK:
                    path = given.keep / f"{error.code}-{hashlib.sha256(data).hexdigest()[:16]}-{name}"
                    path.write_bytes(data)
                    print(error.code, path, flush=True)
            if decoder.pid is not None and sum(outcomes.values()) % 50 == 0:
                peak = max(peak, psutil.Process(decoder.pid).memory_info().rss >> 20)
    tried = sum(outcomes.values())
    about = machine()
    lines = [
        "# Damaged images",
        "",
        f"`python -m benchmarks.fuzz` on {about['cpu']}: {tried:,} objects damaged from {len(files)} files in "
        f"{given.minutes:g} minutes, seed {given.seed}. Nothing but frames or a code came back; the decoder's process "
        f"held at most {peak} MiB between objects.",
        "",
        "| outcome | objects |",
        "| --- | --- |",
        *(f"| {outcome} | {count:,} |" for outcome, count in outcomes.most_common()),
    ]
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
