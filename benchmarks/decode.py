"""Which library decodes PNG and JPEG at equal pixels, what it costs to import, and what it tells of damage.

    python benchmarks/decode.py

Prints the table and writes it to benchmarks/results/decode.md.
Images are made here, seeded: a smooth field with grain, so that they compress like photographs and radiographs do.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import PIL
import simplejpeg
import torch
import torchvision
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

Array = npt.NDArray[Any]
SIZES_PX = (256, 1024, 2048)
REPEATS = 7
RESULT = Path(__file__).parent / "results" / "decode.md"


def main() -> None:
    """Measure, print and store."""
    torch.set_num_threads(1)
    lines = [
        "# Decoding PNG and JPEG",
        "",
        f"{machine()}; Python {platform.python_version()}, Pillow {PIL.__version__}, torchvision "
        f"{torchvision.__version__}, imagecodecs {imagecodecs.__version__}, simplejpeg; one thread, fastest of "
        f"{REPEATS}; load average {os.getloadavg()[0]:.1f} while it ran.",
        "",
        "| picture | Pillow ms | torchvision ms | imagecodecs ms | simplejpeg ms | pixels |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for size in SIZES_PX:
        for name, data, readers in cases(size):
            arrays = [reader(data) for reader in readers]
            times = [f"{fastest_ms(reader, data):.2f}" for reader in readers]
            times += [""] * (len(NAMES) - len(times))
            lines.append(f"| {name} {size} x {size} | {' | '.join(times)} | {verdict(arrays)} |")
    lines += [
        "",
        "| import, in a fresh process | s |",
        "|---|---:|",
        *(f"| `{statement}` | {import_s(statement):.2f} |" for statement in IMPORTS),
        "",
        CONCLUSION,
        "",
    ]
    text = "\n".join(lines)
    print(text)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(text)


IMPORTS = (
    "import PIL.PngImagePlugin, PIL.JpegImagePlugin, numpy",
    "import imagecodecs; imagecodecs.png_decode",
    "import simplejpeg",
    "import torchvision.io",
)
NAMES = ("Pillow", "torchvision", "imagecodecs", "simplejpeg")

CONCLUSION = """\
What `ad_jobs/images` makes of it: where two libraries give equal pixels, the faster one that a decoding process can
import at once. PNG up to 8 bits: Pillow, on a par, and it also unpacks palettes and low bit depths. 16-bit PNG:
imagecodecs, as Pillow cuts 16-bit colour to 8 bits. JPEG: simplejpeg, faster than Pillow and on a par with
imagecodecs and torchvision, and the only one to tell libjpeg's warnings, without which half a picture passes for
a whole one; torchvision's import costs each decoding process what some thousand pictures take to decode."""


def cases(size: int) -> list[tuple[str, bytes, list[Callable[[bytes], Array]]]]:
    """(name, bytes, readers in the order of NAMES) of every kind at one size."""
    colour = field(size, 3)
    grey = np.ascontiguousarray(colour[..., 0])
    png = [pillow_png, torch_png, imagecodecs.png_decode]
    jpeg = [pillow_jpeg, torch_jpeg, imagecodecs.jpeg8_decode]
    grey_jpeg, colour_jpeg = [*jpeg, simple_grey], [*jpeg, simplejpeg.decode_jpeg]
    return [
        ("PNG grey 8", imagecodecs.png_encode((grey >> 8).astype(np.uint8)), png),
        ("PNG RGB 8", imagecodecs.png_encode((colour >> 8).astype(np.uint8)), png),
        ("PNG grey 16", imagecodecs.png_encode(grey), png),
        ("PNG RGB 16", imagecodecs.png_encode(colour), png),
        ("JPEG grey", pillow_bytes((grey >> 8).astype(np.uint8)), grey_jpeg),
        ("JPEG RGB 4:2:0", pillow_bytes((colour >> 8).astype(np.uint8)), colour_jpeg),
    ]


def field(size: int, channels: int) -> Array:
    """A smooth field with grain, uint16 [size, size, channels]."""
    rng = np.random.default_rng(size)
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    phases = rng.uniform(0, 6.28, channels)
    smooth = np.stack([np.sin(7 * x + phase) * np.cos(5 * y - phase) for phase in phases], axis=-1)
    return np.clip((smooth + 1) * 30000 + rng.normal(0, 400, smooth.shape) + 2500, 0, 65535).astype(np.uint16)


def pillow_bytes(pixels: Array) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def pillow_png(data: bytes) -> Array:
    return np.asarray(PngImageFile(BytesIO(data)))


def pillow_jpeg(data: bytes) -> Array:
    return np.asarray(JpegImageFile(BytesIO(data)))


def torch_png(data: bytes) -> Array:
    return channels_last(decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED))


def torch_jpeg(data: bytes) -> Array:
    return channels_last(decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED))


def simple_grey(data: bytes) -> Array:
    grey: Array = simplejpeg.decode_jpeg(data, "GRAY")[..., 0]
    return grey


def channels_last(image: torch.Tensor) -> Array:
    array: Array = image.permute(1, 2, 0).numpy()
    return array[..., 0] if array.shape[2] == 1 else array


def verdict(arrays: list[Array]) -> str:
    """Whether all gave the same pixels."""
    deepest = max(array.dtype.itemsize for array in arrays)
    shallow = [name for name, array in zip(NAMES, arrays, strict=False) if array.dtype.itemsize < deepest]
    if shallow:
        return f"{', '.join(shallow)}: only 8 bits"
    worst = max(int(np.abs(arrays[0].astype(int) - array.astype(int)).max()) for array in arrays[1:])
    return "equal" if worst == 0 else f"differ by up to {worst}"


def fastest_ms(reader: Callable[[bytes], Array], data: bytes) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        reader(data)
        times.append(time.perf_counter() - start)
    return min(times) * 1000


def import_s(statement: str) -> float:
    """Seconds that a statement takes in a fresh interpreter, the interpreter's own start taken off."""

    def run(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    return min(run(statement) for _ in range(3)) - min(run("pass") for _ in range(3))


def machine() -> str:
    """The processor's name and the number of its cores that this process may use."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    main()
