"""What bombs cost: objects decoded as a scan's task decodes them, with and without bombs among them.

    python -m benchmarks.hostile [--objects 2000] [--share 0.05]

Bombs are small objects that announce, unpack to or lead to far more than they hold; the rest are `fuzz_seeds`.
Prints the table and writes it to benchmarks/results/hostile.md.
"""

from __future__ import annotations

import argparse
import struct
import time
import zlib
from collections import Counter
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path

import imagecodecs
import numpy as np
import psutil
import tifffile

from ad_jobs.errors import ImageError
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.run import machine
from benchmarks.fuzz_seeds import GREY, seeds

RESULTS = Path(__file__).parent / "results" / "hostile.md"
POLICY = PixelPolicy(channels=1, height_px=224, width_px=224)


def bombs() -> dict[str, bytes]:
    """One of each kind, none above a few hundred kilobytes."""
    found = seeds()
    huge = struct.pack(">LL", 30_000, 30_000)
    jp2 = found["jp2.dcm"]
    size = jp2.index(b"\xff\x4f\xff\x51") + 8
    jpeg = found["grey.jpg"]
    frame = jpeg.index(b"\xff\xc0") + 5
    png = found["grey.png"]
    header = b"IHDR" + huge + png[24:29]
    stream = BytesIO()
    tifffile.imwrite(stream, GREY, subfiletype=1)
    loop = bytearray(stream.getvalue())
    (first,) = struct.unpack_from("<L", loop, 4)
    (entries,) = struct.unpack_from("<H", loop, first)
    struct.pack_into("<L", loop, first + 2 + 12 * entries, first)
    tile = BytesIO()
    tifffile.imwrite(tile, GREY, tile=(16384, 16384), compression="zstd")
    rows = np.zeros((9000, 9000, 3), np.uint8)
    return {
        "JPEG 2000 in DICOM, 30,000 x 30,000": jp2[:size] + huge + jp2[size + 8 :],
        "JPEG, 30,000 x 30,000": jpeg[:frame] + struct.pack(">HH", 30_000, 30_000) + jpeg[frame + 4 :],
        "PNG, 30,000 x 30,000": png[:12] + header + struct.pack(">L", zlib.crc32(header)) + png[33:],
        "TIFF, directories in a circle": bytes(loop),
        "TIFF, a tile of 16,384 x 16,384": tile.getvalue(),
        "JPEG of 81 million black pixels": imagecodecs.jpeg8_encode(rows)[:400],
    }


def seconds(objects: list[bytes], limits: Limits) -> tuple[float, int, Counter[str]]:
    """How long they take one after the other, the decoder's peak in MiB, and what came of them."""
    outcomes: Counter[str] = Counter()
    with GuardedDecoder() as decoder:
        decoder.decode(objects[0], POLICY, limits)
        start, peak = time.perf_counter(), 0
        for data in objects:
            try:
                decoder.decode(data, POLICY, limits)
                outcomes["scored"] += 1
            except ImageError as error:
                outcomes[error.code] += 1
            if decoder.pid is not None:
                peak = max(peak, psutil.Process(decoder.pid).memory_info().rss >> 20)
        return time.perf_counter() - start, peak, outcomes


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--share", type=float, default=0.05)
    given = parser.parse_args()
    many = round(given.objects * given.share)
    kinds = bombs()
    good = list(islice(cycle(seeds().values()), given.objects - many))
    every = max(1, len(good) // max(1, many))
    mixed = list(good)
    for number, bomb in enumerate(islice(cycle(kinds.values()), many)):
        mixed.insert(1 + number * (every + 1), bomb)
    without = seconds(good, Limits())
    among = seconds(mixed, Limits())
    lines = [
        "# What bombs cost",
        "",
        f"`python -m benchmarks.hostile` on {machine()['cpu']}: {given.objects:,} objects, {many} of them bombs of "
        f"{len(kinds)} kinds ({', '.join(kinds)}), of at most {max(map(len, kinds.values())):,} bytes.",
        "",
        "| objects | s | decoder between objects, at most MiB | outcomes |",
        "| --- | ---: | ---: | --- |",
    ]
    for name, (took, peak, outcomes) in (("without bombs", without), ("with bombs", among)):
        told = ", ".join(f"{code} {count:,}" for code, count in outcomes.most_common())
        lines.append(f"| {name} | {took:.1f} | {peak} | {told} |")
    lines += ["", f"With bombs it took {among[0] / without[0]:.2f} times as long."]
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
