"""Damaged images for the decoders, for as long as you like: nothing may come back but frames or an error code.

    python -m benchmarks.fuzz [FOLDER ...] [--minutes 60] [--seed 0] [--keep build/fuzz]

Images of every kind (`fuzz_seeds`), and every file below the folders that decodes, are damaged again and again: bytes
and 32-bit fields overwritten, pieces cut out, doubled, zeroed, exchanged with those of another file, ends cut off.
Objects that killed the decoder's process, or ran into a limit of time or memory, are no fault of a scan (their rows say
so), but are kept to be looked at.
The memory of both processes is looked at between objects: it must not grow.
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
from benchmarks.fuzz_seeds import seeds

RESULTS = Path(__file__).parent / "results" / "fuzz.md"
POLICY = PixelPolicy(channels=3, height_px=64, width_px=64)
LIMITS = Limits(max_pixels=20_000_000, max_frames=200, max_memory_bytes=1 << 30, timeout_s=5.0)
# Larger ones make few rounds a minute.
LARGEST_BYTES = 400_000
EXTREMES = (0, 1, 0x7F, 0x80, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF)
WORTH_A_LOOK = {ErrorCode.DECODE_TIMEOUT, ErrorCode.DECODER_CRASHED, ErrorCode.TOO_MUCH_MEMORY}
LOOK_EVERY = 50


def damaged(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """`data` after one to four damages; half of them lie in its first 2 KiB, where the headers are."""
    found = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        end = len(found) if rng.random() < 0.5 else min(len(found), 2048)
        place = int(rng.integers(0, max(1, end)))
        length = int(rng.integers(1, 65))
        match rng.integers(7):
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
                half = len(found[place:]) // 2
                found[place : place + half] = bytes(half)
            case 5:
                start = int(rng.integers(0, max(1, len(other) - length)))
                found[place : place + length] = other[start : start + length]
            case _:
                del found[max(1, place) :]
    return bytes(found)


def undamaged(folders: list[Path], decoder: GuardedDecoder) -> dict[str, bytes]:
    """What is damaged, by name: the seeds, and the files that decode."""
    found = seeds()
    for name, data in found.items():
        try:
            decoder.decode(data, POLICY, LIMITS)
        except ImageError as error:
            raise SystemExit(f"{name} does not decode: {error}") from None
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        if path.stat().st_size <= LARGEST_BYTES:
            try:
                decoder.decode(path.read_bytes(), POLICY, LIMITS)
            except ImageError:
                continue
            found[path.name] = path.read_bytes()
    return found


def _rss_mib(pid: int | None) -> int:
    return int(psutil.Process(pid).memory_info().rss >> 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"))
    given = parser.parse_args()
    given.keep.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(given.seed)
    outcomes: Counter[str] = Counter()
    by_format: Counter[str] = Counter()
    # Of the decoder's process and of this one, MiB.
    memory: list[tuple[int, int]] = []
    with GuardedDecoder() as decoder:
        files = undamaged(given.folders, decoder)
        names = sorted(files)
        until = time.monotonic() + 60 * given.minutes
        while time.monotonic() < until:
            name, other = (names[rng.integers(len(names))] for _ in range(2))
            data = damaged(files[name], files[other], rng)
            by_format[Path(name).suffix.lstrip(".") or "dcm"] += 1
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
            if decoder.pid is not None and sum(outcomes.values()) % LOOK_EVERY == 0:
                memory.append((_rss_mib(decoder.pid), _rss_mib(None)))
    tried = sum(outcomes.values())
    tenth = max(1, len(memory) // 10)
    about = machine()
    lines = [
        "# Damaged images",
        "",
        f"`python -m benchmarks.fuzz` on {about['cpu']}: {tried:,} objects damaged from {len(files)} files in "
        f"{given.minutes:g} minutes, seed {given.seed}. Nothing but frames or a code came back.",
        "",
        f"By format: {', '.join(f'{name} {count:,}' for name, count in sorted(by_format.items()))}.",
        "",
        "| memory between objects, MiB | first tenth | last tenth | most |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {who} | {np.median(used[:tenth]):.0f} | {np.median(used[-tenth:]):.0f} | {max(used)} |"
            for who, used in zip(("decoder", "parent"), zip(*memory, strict=True), strict=True)
        ),
        "",
        "| outcome | objects |",
        "| --- | --- |",
        *(f"| {outcome} | {count:,} |" for outcome, count in outcomes.most_common()),
    ]
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
