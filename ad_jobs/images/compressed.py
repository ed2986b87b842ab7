"""A frame of encapsulated pixel data to stored values, by the code stream that is there.

JPEG of every process in DICOM but the arithmetic ones by libjpeg-turbo, JPEG-LS by CharLS, JPEG 2000 and HTJ2K by
OpenJPEG, RLE by segments; all through imagecodecs.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images import jpeg2000, libjpeg, reduced_jpeg2000
from ad_jobs.images.codestream import JpegFrame, jpeg_frame
from ad_jobs.images.geometry import Grid
from ad_jobs.images.libraries import foreign
from ad_jobs.images.pixel_module import MONOCHROME, PALETTE, YBR, YBR_JPEG_2000, PixelModule
from ad_jobs.images.remarks import Remark
from ad_jobs.images.stored_values import from_cells, from_code_stream
from cluster.counting import counted

Array = npt.NDArray[Any]

RLE = "1.2.840.10008.1.2.5"
# PS3.6 table A-1, by how a code stream of theirs begins: JPEG, JPEG-LS among it, and JPEG 2000.
_JPEG = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 53, 55, 57, 70, 80, 81)}
_JPEG_LS = {f"1.2.840.10008.1.2.4.{number}" for number in (80, 81)}
_JPEG_2000 = {f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203)}
# Of the others layers may have been cut off, after either transformation: nothing in the stream tells.
_JPEG_2000_LOSSLESS = {f"1.2.840.10008.1.2.4.{number}" for number in (90, 201, 202)}

# T.87: the start of frame of JPEG-LS; ITU-T T.81 table B.1: those of lossy processes.
_SOF_JPEG_LS = 0xF7
_SOF_LOSSY = (0xC0, 0xC1, 0xC2)
# Of a sample that may be reduced.
MIN_BITS = 8


class _Cells(NamedTuple):
    """What a code stream holds: [rows, columns] or [rows, columns, 3] of so many bits, and their colour space."""

    values: Array
    bits: int
    photometric: str
    # It may hold values that were never there, and no bits above theirs.
    lossy: bool = False
    # Of the values, where they were reduced.
    grid: Grid | None = None


class StoredFrame(NamedTuple):
    """Stored values [rows, columns] or [rows, columns, 3] of a frame, and what its pixels turn out to be.

    Of a reduced frame `grid` tells how they lie over the whole one.
    """

    values: Array
    module: PixelModule
    grid: Grid | None = None


def decodable(syntax: str) -> bool:
    """Whether frames in this transfer syntax are decoded here: imagecodecs may have been built without a codec."""
    codecs: list[tuple[set[str], Any]] = [
        ({RLE}, imagecodecs.PACKBITS),
        (_JPEG_LS, imagecodecs.JPEGLS),
        (_JPEG - _JPEG_LS, imagecodecs.JPEG8),
        (_JPEG_2000, imagecodecs.JPEG2K),
    ]
    return any(codec.available for syntaxes, codec in codecs if syntax in syntaxes)


def most_reduced(code: bytes) -> int:
    """By how much a code stream of this kind can be reduced at most: 1 where its codec knows one size alone."""
    frame = jpeg_frame(code)
    if frame is not None:
        return libjpeg.MOST_REDUCED if libjpeg.reducible(frame) else 1
    return jpeg2000.MOST_REDUCED if jpeg2000.contiguous(code) else 1


def decode_frame(
    code: bytes, index: int, syntax: str, module: PixelModule, remarks: set[str], factor: int = 1
) -> StoredFrame:
    """A frame's stored values, reduced by `factor` (a power of two) where its code stream can be.

    A code stream says itself what it is: neither Planar Configuration (PS3.3 C.7.6.3.1.3 is of native frames) nor the
    transfer syntax is asked where it does.

    Raises:
        ImageError: the code stream is damaged, or holds what the header cannot mean.
    """
    jpeg = jpeg_frame(code)
    if jpeg is not None:
        if jpeg.marker == _SOF_JPEG_LS:
            cells = _jpeg_ls(code, jpeg, module)
        else:
            cells = _jpeg(code, jpeg, module, remarks, factor)
        belongs = syntax in _JPEG
    elif jpeg_2000 := jpeg2000.contiguous(code):
        # PS3.5 A.4.4: the boxes of a JP2 file, if any, do not count.
        cells = _jpeg_2000(jpeg_2000, module, remarks, factor, lossy=syntax not in _JPEG_2000_LOSSLESS)
        belongs = syntax in _JPEG_2000
    elif syntax == RLE:
        values = from_cells(_rle(code, module), module)
        return StoredFrame(values, module._replace(photometric=_decoded(module.photometric)))
    else:
        raise ImageError(ErrorCode.CORRUPT, f"frame {index} is no code stream that TransferSyntaxUID may mean")
    if not belongs:
        remarks.add(Remark.TRANSFER_SYNTAX)
    # What is decoded is what the code stream says; the header must mean the same.
    samples = cells.values.shape[2] if cells.values.ndim == 3 else 1
    if samples != module.samples:
        detail = f"SamplesPerPixel is {module.samples}, frame {index} has {samples}"
        raise ImageError(ErrorCode.CORRUPT, detail)
    if samples > 1 and module.planar:
        remarks.add(Remark.PLANAR_CONFIGURATION)
    stored = from_code_stream(cells.values, cells.bits, index, module, remarks, cells.lossy)
    module = module._replace(photometric=cells.photometric)
    # PS3.5 8.2.1: the code stream's bits are the picture's. One without a sign under a signed header lacks its bit.
    complete = not module.signed or cells.values.dtype.kind == "i"
    if cells.bits < module.stored and complete and module.photometric != PALETTE:
        remarks.add(Remark.BITS_STORED)
        module = module._replace(stored=cells.bits, high=cells.bits - 1)
    return StoredFrame(stored, module, cells.grid)


def _jpeg(code: bytes, frame: JpegFrame, module: PixelModule, remarks: set[str], factor: int) -> _Cells:
    photometric = module.photometric
    if frame.components == 3 and photometric not in MONOCHROME:
        photometric = _jpeg_colours(code, frame, photometric, remarks)
    lossy = frame.marker in _SOF_LOSSY
    # Without a colour space libjpeg guesses; only the full range is what it can convert.
    spaces = None
    if frame.components == 3:
        convert = lossy and photometric in ("YBR_FULL", "YBR_FULL_422")
        spaces = ("YCBCR", "RGB") if convert else ("RGB", "RGB")
        photometric = "RGB" if convert else photometric
    if factor > 1 and libjpeg.reducible(frame):
        # Whole values alone have a mean: not the bits of signed ones, nor such with others above them.
        values_alone = frame.bits <= module.stored and not module.signed
        as_guessed = spaces is None or spaces[0] == libjpeg.guessed_space(code, frame)
        if values_alone and as_guessed and (found := libjpeg.decode_reduced(code, frame, factor)):
            return _Cells(found[0], frame.bits, photometric, lossy, found[1])
        remarks.add(Remark.DECODED_WHOLE)
    values, told = libjpeg.decode(code, frame, spaces)
    remarks |= told
    return _Cells(values, frame.bits, photometric, lossy)


def _jpeg_colours(code: bytes, frame: JpegFrame, photometric: str, remarks: set[str]) -> str:
    """The colour space of a JPEG of three components: components called R, G and B are, and JFIF is YCbCr."""
    names = code[frame.end - 9 : frame.end : 3].upper()
    if names == b"RGB":
        said = "RGB"
    elif code[2:4] == b"\xff\xe0" and code[6:10] == b"JFIF" and photometric not in YBR:
        said = "YBR_FULL"
    else:
        return photometric
    if said != photometric:
        remarks.add(Remark.PHOTOMETRIC_INTERPRETATION)
    return said


def _jpeg_ls(code: bytes, frame: JpegFrame, module: PixelModule) -> _Cells:
    # T.87 C.2.3: NEAR stands behind the components of the first scan header.
    scan = code.find(b"\xff\xda", frame.end)
    near = code[scan + 5 + 2 * code[scan + 4]] if 0 <= scan < len(code) - 12 else 0
    with foreign("CharLS"):
        values = imagecodecs.jpegls_decode(code)
    return _Cells(values, frame.bits, module.photometric, near > 0)


def _jpeg_2000(code: bytes, module: PixelModule, remarks: set[str], factor: int, *, lossy: bool) -> _Cells:
    # T.800 A.5.1: the precision of the first component, its first bit the sign.
    sign_and_bits = code[42]
    bits = (sign_and_bits & 0x7F) + 1
    jpeg2000.check_zeros(code)
    if factor > 1:
        # As for JPEG.
        # With few levels the rounding of the transformations, up to half a level for each halving, would show.
        values_alone = MIN_BITS <= bits <= module.stored and bool(sign_and_bits >> 7) == module.signed
        if values_alone and (found := reduced_jpeg2000.decode(code, factor)):
            return _Cells(found[0], bits, _decoded(module.photometric), lossy, found[1])
        remarks.add(Remark.DECODED_WHOLE)
    with foreign("OpenJPEG"):
        values = imagecodecs.jpeg2k_decode(code)
    if sign_and_bits >> 7 and not module.signed:
        # Two's complement of so many bits, whatever the header calls them.
        values = values.view(f"u{values.dtype.itemsize}") & ((1 << bits) - 1)
    return _Cells(values, bits, _decoded(module.photometric), lossy)


def _rle(code: bytes, module: PixelModule) -> Array:
    """The cells of a frame, PS3.5 annex G: a segment for each byte of each sample, the highest first."""
    size, samples, pixels = module.allocated // 8, module.samples, module.rows * module.columns
    if module.allocated not in (8, 16, 32, 64):
        raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, f"BitsAllocated is {module.allocated}, in RLE")
    if len(code) < 64:
        raise ImageError(ErrorCode.TRUNCATED, "the RLE header is cut short")
    count, *offsets = struct.unpack_from("<16L", code)
    if count != size * samples or count > 15:
        detail = f"{count} RLE segments, SamplesPerPixel is {samples}, BitsAllocated {module.allocated}"
        raise ImageError(ErrorCode.CORRUPT, detail)
    planes = np.empty((pixels, samples, size), np.uint8)
    ends = [*offsets[1:count], len(code)]
    for segment, (start, end) in enumerate(zip(offsets, ends, strict=False)):
        with foreign("RLE"):
            plane = np.frombuffer(imagecodecs.packbits_decode(code[start:end]), np.uint8)
        if plane.size < pixels:
            raise ImageError(ErrorCode.TRUNCATED, f"RLE segment {segment}: {plane.size} of {counted(pixels, 'byte')}")
        planes[:, segment // size, size - 1 - segment % size] = plane[:pixels]
    values = planes.view(f"<u{size}").reshape(module.rows, module.columns, samples)
    return values[..., 0] if samples == 1 else values


def _decoded(photometric: str) -> str:
    """What a photometric interpretation is once JPEG 2000's own transformations are undone."""
    return "RGB" if photometric in YBR_JPEG_2000 else photometric
