"""docs/formats.md: what is read of which file, by the kinds and forms that the tests of pixels go through.

    python benchmarks/formats.py

Every cell of its table is what the decoder just made of a file of that kind in that form.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "formats.md"
# The kinds lie with the tests, which are no package.
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

TOP = """\
# What is read

Written by `python benchmarks/formats.py`; a test holds it against the decoder.

| format | what of it |
|---|---|
| DICOM | grey of 1 to 64 bits and of floats, RGB, YCbCr, palettes; each frame has a row |
| its transfer syntaxes | native, deflated, big endian; RLE; JPEG of 8 or 12 bits, lossless; JPEG-LS; JPEG 2000, HTJ2K |
| PNG | 1 to 16 bits, grey, colour, palettes; what is transparent, also by tRNS, is black |
| JPEG | 8 and 12 bits, grey, colour, CMYK; upright by EXIF |
| TIFF, BigTIFF | integers and floats; a page of full resolution is a frame, and so is each of a stack behind one page |

Stacks behind one page are those of ImageJ, MetaMorph and tifffile; pages of ScanImage are read as they are linked.
Of an Aperio slide the baseline alone is the picture: thumbnail, label, macro and levels are no frames.
Pixels of GDAL's nodata value (TIFF tag 42113) are padding: black, and no part of a range that the picture gives.

## Decoded at a smaller size

A model of `fit --decode reduced` has JPEG 2000, HTJ2K and JPEG of 8 bits decoded at a half, a quarter, ... of their
size, as far as either side keeps twice the pixels that the input shows of it, and the mean by area taken from there;
`rows`, `columns` and heatmaps are the whole frame's. Other models decode whole frames, as does what is shown of a run.
[Measured](../benchmarks/results/reduced.md): what that saves, and by how much scores move; `verify --full` tells it of
a run of your own.

- Whole as well, without a remark: what has one size alone (native, RLE, JPEG-LS, lossless JPEG, JPEG of 12 bits or
  four inks, PNG, TIFF), palettes, an older High Bit, and objects with Pixel Padding Value, of which a mean would mix
  padding into its border. `--window percentile` looks at every pixel, and goes with whole frames alone.
- Whole, with the remark `decoded_whole`: JPEG 2000 without resolutions, with an offset, a region of interest, tiles
  that do not halve, components or tiles of their own ways, or bits or a sign that are not the header's; colour of more
  than 8 bits; colour JPEG whose space the header and the stream name differently; a turned JPEG with part of a block;
  and what is damaged, which is judged as a whole.
- Windows and LUTs come after the reduction: where a reduced pixel lies across an edge that a narrow window cuts, it may
  be another grey. JPEG 2000's reversible transformation rounds up by as much as half a stored step each time it halves.

## Kinds of DICOM pixels that are easily got wrong

What stands under a form is what becomes of such a file: `shown` as the clause says, `refused` with a reason that names
the attribute, or – where the kind does not exist in that form.
A remark is what `error_detail` of the scored row says was assumed ([columns.md](columns.md#remarks)).

"""
SECOND = """
## Where DCMTK shows something else

DCMTK (`dcmj2pnm`, `dcml2pnm`) renders every kind above in every form that it reads, and real files; the tests
(`tests/ad_jobs/images/test_dcmtk.py`) allow rounding and what stands here.

| kind or file | who is right |
|---|---|
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


def page() -> str:
    """The page as it is to be."""
    import dcmtk
    import dicomkit as kit
    from pixel_kinds import KINDS, Kind

    titles: dict[str, list[Kind]] = {}
    for kind in KINDS:
        titles.setdefault(kind.title, []).append(kind)
    forms = [form for form in kit.FORMS if form not in kit.LOSSY]
    lines = [f"| kind | {' | '.join(forms)} | remark | clause |", f"|---|{'---|' * len(forms)}---|---|"]
    for title, kinds in titles.items():
        cells = [cell(kinds, form) for form in forms]
        remarks = ", ".join(dict.fromkeys(f"`{kind.remark}`" for kind in kinds if kind.remark))
        lines.append(f"| {title} | {' | '.join(cells)} | {remarks} | {clauses(kinds)} |")
    reasons: dict[tuple[str, str], list[str]] = {}
    for kind in KINDS:
        if kind.differs:
            reasons.setdefault((kind.title, kind.differs), []).append(kind.variant)
    rows = []
    for (title, reason), variants in reasons.items():
        which = f" ({'; '.join(variants)})" if any(variants) else ""
        rows.append(f"| {title}{which} | {reason} |")
    rows += [f"| `{name}` | {reason} |" for name, reason in dcmtk.DIFFERENT.items()]
    return TOP + "\n".join(lines) + "\n" + SECOND + "\n".join(rows) + "\n"


def clauses(kinds: list[Any]) -> str:
    """The clauses that these variants of a kind go by, each once."""
    by_part: dict[str, list[str]] = {}
    for kind in kinds:
        part = ""
        for clause in kind.clause.split(", "):
            part, clause = clause.split(" ", 1) if clause.startswith("PS3") else (part, clause)
            if clause not in by_part.setdefault(part, []):
                by_part[part].append(clause)
    return "; ".join(f"{part} {', '.join(found)}" for part, found in by_part.items())


def cell(kinds: list[Any], form: str) -> str:
    """What becomes of these variants of a kind in a form."""
    found = dict.fromkeys(outcome(kind, form) for kind in kinds if form in kind.forms)
    return ", ".join(found) or "–"


def outcome(kind: Any, form: str) -> str:
    """`shown` as wanted, `refused` as wanted, or `wrong`."""
    import dicomkit as kit

    from ad_jobs.errors import ImageError
    from ad_jobs.images.decode import decode

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = kind.build(form)
    try:
        pixels = decode(data, kit.policy(kind.window, channels=3), kit.LIMITS).frames[kind.frame].pixels / 65535
    except ImageError as error:
        return "refused" if isinstance(kind.want, str) and kind.want in error.detail else "wrong"
    shown = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    right = not isinstance(kind.want, str) and np.abs(shown - kind.want).max() < 1e-4
    return "shown" if right else "wrong"


if __name__ == "__main__":
    main()
