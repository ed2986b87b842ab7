"""What a DICOM header says of the form of its pixels, the Image Pixel Module of PS3.3 C.7.6.3; contradictions settled.

An attribute that has one safe reading is assumed, and the row says so; without one, the object is refused by its name.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.attributes import integer
from ad_jobs.images.remarks import Remark

MONOCHROME = frozenset({"MONOCHROME1", "MONOCHROME2"})
PALETTE = "PALETTE COLOR"
# PS3.3 C.7.6.3.1.2: two pixels in a row share their chrominance; full range, and that of video.
YBR_422 = frozenset({"YBR_FULL_422", "YBR_PARTIAL_422"})
YBR = YBR_422 | {"YBR_FULL"}
# JPEG 2000's own transformations, which its decoder undoes.
YBR_JPEG_2000 = frozenset({"YBR_ICT", "YBR_RCT"})
_READ = MONOCHROME | YBR | YBR_JPEG_2000 | {PALETTE, "RGB"}
# Those that no detector here can take; HSV to CMYK are retired.
_UNREAD = frozenset({"YBR_PARTIAL_420", "XYB", "HSV", "ARGB", "CMYK"})
# Writers get case, padding and underscores wrong.
_BY_LETTERS = {name.replace("_", "").replace(" ", ""): name for name in _READ | _UNREAD}

FLOAT, DOUBLE_FLOAT, INTEGER = 0x7FE00008, 0x7FE00009, 0x7FE00010
PIXEL_TAGS = (FLOAT, DOUBLE_FLOAT, INTEGER)


class PixelModule(NamedTuple):
    """The form of the pixels.

    `tag` is the attribute that holds them; `allocated`, `stored` and `high` are bits, and of no meaning for floats.
    `little` is the order of bytes in the object's words.
    `planar`: the samples of a native frame lie colour by plane; None where the header does not say.
    """

    tag: int
    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    planar: bool | None
    allocated: int
    stored: int
    high: int
    signed: bool
    little: bool

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.columns

    @property
    def floating(self) -> bool:
        """Whether the pixels are floats, PS3.3 C.7.6.24 and C.7.6.25."""
        return self.tag != INTEGER

    @property
    def stored_range(self) -> tuple[int, int]:
        """The lowest and highest value of Bits Stored."""
        if self.signed:
            return -(1 << (self.stored - 1)), (1 << (self.stored - 1)) - 1
        return 0, (1 << self.stored) - 1


def read_pixel_module(ds: Any, remarks: set[str], *, little: bool) -> PixelModule:
    """The form of the pixels of a data set that has some; what was assumed is added to `remarks`.

    Raises:
        ImageError: an attribute without which nothing is sure is missing, contradicts another, or is of a form that no
            detector takes; the detail names it.
    """
    tag = next(tag for tag in PIXEL_TAGS if tag in ds)
    photometric = read_photometric(ds)
    rows, columns = integer(ds, "Rows"), integer(ds, "Columns")
    # PS3.3 C.7.6.6: absent or empty means a single frame.
    frames = integer(ds, "NumberOfFrames", 1) or 1
    if frames < 1:
        raise ImageError(ErrorCode.CORRUPT, f"NumberOfFrames is {frames}")
    samples = _samples(ds, photometric, remarks)
    planar = integer(ds, "PlanarConfiguration", -1)
    if samples > 1 and planar not in (-1, 0, 1):
        # As if by pixel, what every compressed frame and nearly every native one is.
        remarks.add(Remark.PLANAR_CONFIGURATION)
        planar = 0
    shape = (tag, rows, columns, frames, samples, photometric, None if planar == -1 else planar == 1)
    if tag != INTEGER:
        bits = 32 if tag == FLOAT else 64
        return PixelModule(*shape, allocated=bits, stored=bits, high=bits - 1, signed=True, little=little)
    allocated, stored, high, signed = _bits(ds, remarks)
    # PS3.3 C.7.6.3.1.2: the lowest sample of RGB is none of that colour, and no colour is less than none.
    if signed and samples > 1:
        remarks.add(Remark.PIXEL_REPRESENTATION)
        signed = False
    return PixelModule(*shape, allocated, stored, high, signed, little)


def read_photometric(ds: Any) -> str:
    """The photometric interpretation by its name in PS3.3 C.7.6.3.1.2, however it is spelt.

    Raises:
        ImageError: missing, unknown, or of a kind that no detector takes.
    """
    value = str(ds.get("PhotometricInterpretation") or "")
    if not _letters(value):
        raise ImageError(ErrorCode.CORRUPT, "PhotometricInterpretation is missing")
    name = named_photometric(value) or "unknown"
    if name not in _READ:
        raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, f"PhotometricInterpretation is {name}")
    return name


def named_photometric(value: str) -> str | None:
    """The name in PS3.3 C.7.6.3.1.2 of a photometric interpretation, however it is spelt; None if it has none."""
    return _BY_LETTERS.get(_letters(value))


def _letters(value: str) -> str:
    return "".join(letter for letter in value.upper() if letter.isascii() and letter.isalnum())


def _samples(ds: Any, photometric: str, remarks: set[str]) -> int:
    """Samples Per Pixel, by the photometric interpretation where the header does not say or lacks two of three."""
    expected = 1 if photometric in MONOCHROME | {PALETTE} else 3
    # Type 1, but nobody means anything else by leaving it out.
    said = integer(ds, "SamplesPerPixel", 0)
    if said == expected:
        return said
    # PS3.3 C.7.6.3.1.1; 4 was ARGB and CMYK, retired.
    if said not in (0, 1, 3):
        raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, f"SamplesPerPixel is {said}")
    # Three samples that are called grey may be any colour; one that is called colour can only be a slip: whether there
    # are three is seen by the bytes.
    if said == 3:
        raise ImageError(ErrorCode.CORRUPT, f"SamplesPerPixel is 3, PhotometricInterpretation {photometric}")
    remarks.add(Remark.SAMPLES_PER_PIXEL)
    return expected


def _bits(ds: Any, remarks: set[str]) -> tuple[int, int, int, bool]:
    """Bits Allocated, Bits Stored, High Bit, and whether values are signed, PS3.5 8.1.1."""
    allocated, stored = integer(ds, "BitsAllocated"), integer(ds, "BitsStored")
    if not 1 <= allocated <= 64:
        raise ImageError(ErrorCode.CORRUPT, f"BitsAllocated is {allocated}")
    if not 1 <= stored <= allocated:
        raise ImageError(ErrorCode.CORRUPT, f"BitsStored is {stored}, BitsAllocated {allocated}")
    high = integer(ds, "HighBit", -1)
    if high == -1:
        remarks.add(Remark.HIGH_BIT)
        high = stored - 1
    # Later editions allow none but Bits Stored - 1; older ones any place within the cell.
    if not stored - 1 <= high < allocated:
        detail = f"HighBit is {high}, BitsStored {stored}, BitsAllocated {allocated}"
        raise ImageError(ErrorCode.CORRUPT, detail)
    representation = integer(ds, "PixelRepresentation")
    if representation not in (0, 1):
        raise ImageError(ErrorCode.CORRUPT, f"PixelRepresentation is {representation}")
    return allocated, stored, high, representation == 1
