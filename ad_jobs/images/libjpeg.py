"""JPEG code streams to samples by libjpeg, whose warnings are judged: it fills what is missing and goes on.

libjpeg-turbo tells its warnings through simplejpeg, which reads 8 bits and the common kinds of subsampling.
Whatever else imagecodecs decodes, which drops them: simplejpeg reads lossy streams once more in a small size, lossless
ones are counted again, and for what neither takes GDCM's libjpeg tells.
"""

from __future__ import annotations

import re
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg  # type: ignore[import-untyped]

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.codestream import (
    EOI,
    JpegFrame,
    bare_jpeg,
    called_eight_bits,
    has_end,
    has_scan,
    jpeg_frame,
    segments,
    with_end,
)
from ad_jobs.images.geometry import Grid
from ad_jobs.images.libraries import foreign, stderr_of_c
from ad_jobs.images.lossless_jpeg import LOSSLESS, surplus_bytes
from ad_jobs.images.remarks import Remark

# Stray bytes that damage nothing: some writers fill up to an even length, or to a word, before a marker.
# libjpeg has read up to eight of them before it counts.
STRAY_BYTES = 64
# Start of frame markers, T.81 table B.1.
_ARITHMETIC = frozenset({0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
# By the discrete cosine transform and Huffman codes: baseline, extended, progressive.
_COSINE = frozenset({0xC0, 0xC1, 0xC2})
# How far `decode_reduced` goes: a block becomes one pixel.
MOST_REDUCED = 8
_JFIF, _ADOBE = 0xE0, 0xEE
_ZEROS = bytes(16)
# simplejpeg's names, by the number of components.
_COLOURS = {1: "GRAY", 3: "RGB", 4: "CMYK"}

# libjpeg's texts (jerror.h).
_WARNING = re.compile(
    r"Corrupt JPEG data: |Premature end of JPEG file|Inconsistent progression|Invalid SOS|Warning: |"
    r"Application transferred too many"
)
_ENDS_EARLY = re.compile(r"Corrupt JPEG data: premature end|Premature end of JPEG file")
_STRAY = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0x(..)")
# Of the header: a revision of JFIF, Adobe's transform, a colour profile; and scan limits that no baseline stream needs.
_TRIVIAL = re.compile(r"Warning: |Invalid SOS")


def decode(code: bytes, frame: JpegFrame, spaces: tuple[str, str] | None = None) -> tuple[npt.NDArray[Any], set[str]]:
    """The samples [rows, columns] or [rows, columns, 3] of a JPEG of 1 or 3 components, and remarks.

    `spaces` are the colour space that the stream is in and the wanted one, by imagecodecs' names; without them libjpeg
    decides by markers and the names of components, and colour comes as RGB.

    Raises:
        ImageError: damaged, or cut short by more than its end marker.
    """
    ended = closed(code)
    if spaces is not None:
        with foreign("libjpeg"):
            values = np.asarray(imagecodecs.jpeg8_decode(ended, colorspace=spaces[0], outcolorspace=spaces[1]))
        return values, judge(_warning(ended), code, ended)
    warning = None
    if frame.bits == 8:
        with foreign("libjpeg"):
            try:
                samples = simplejpeg.decode_jpeg(ended, _COLOURS[frame.components])
            except ValueError as error:
                # Any other is of a kind that simplejpeg does not read.
                warning = str(error) if _WARNING.match(str(error)) else None
            else:
                return (samples[..., 0] if frame.components == 1 else samples), judge("", code, ended)
    with foreign("libjpeg"):
        values = np.asarray(imagecodecs.jpeg8_decode(ended))
    surplus = surplus_bytes(ended, frame, values)
    if warning is None and surplus is not None:
        return values, _judge_lossless(*surplus, code, ended)
    return values, judge(_warning(ended) if warning is None else warning, code, ended)


def reducible(frame: JpegFrame) -> bool:
    """Whether `decode_reduced` reads such a JPEG: 8 bits by the discrete cosine transform, grey or colour."""
    return frame.bits == 8 and frame.marker in _COSINE and frame.components in (1, 3)


def decode_reduced(code: bytes, frame: JpegFrame, factor: int) -> tuple[npt.NDArray[Any], Grid] | None:
    """The samples of a reducible JPEG at 1 / `factor` (2, 4 or 8) of its size, and how they lie over the whole.

    Colour comes as RGB from the space that `guessed_space` tells.
    None where there is anything to judge, or that simplejpeg does not read: the whole decides.
    """
    # Of the blocks' middles: a block of coefficients becomes fewer pixels that lie symmetrically in it.
    grid = Grid(frame.rows, frame.columns, factor, (factor - 1) / 2)
    rows, columns = grid.size
    if not has_end(code):
        return None
    with foreign("libjpeg"):
        try:
            samples = simplejpeg.decode_jpeg(
                code, _COLOURS[frame.components], min_height=rows, min_width=columns, min_factor=factor
            )
        except ValueError:
            # A warning, or a kind that it does not read.
            return None
    if samples.shape[:2] != grid.size:
        return None
    return (samples[..., 0] if frame.components == 1 else samples), grid


def guessed_space(code: bytes, frame: JpegFrame) -> str | None:
    """The colour space that libjpeg takes three components for; None where Adobe's marker says it."""
    markers = {marker for marker, _, _ in segments(code)}
    if _ADOBE in markers:
        return None
    # jdapimin.c: JFIF is YCbCr; without it the components' names decide.
    named = code[frame.end - 9 : frame.end : 3] == b"RGB"
    return "RGB" if named and _JFIF not in markers else "YCBCR"


def _judge_lossless(surplus: int, stray: bytes, code: bytes, ended: bytes) -> set[str]:
    if surplus < 0:
        raise ImageError(ErrorCode.TRUNCATED, "the code stream of the lossless JPEG ends before its pixels do")
    if surplus > STRAY_BYTES or any(stray):
        raise ImageError(
            ErrorCode.CORRUPT if ended is code else ErrorCode.TRUNCATED,
            f"libjpeg: {surplus} bytes that belong to no part of the picture",
        )
    return {Remark.DAMAGED_END} if surplus or ended is not code else set()


def examine(code: bytes) -> set[str]:
    """Remarks on a JPEG stream that something else decodes, without its warnings; frames, for that, of any kind.

    Raises:
        ImageError: damaged, or cut short by more than its end marker.
    """
    ended = closed(code)
    return judge(_warning(ended), code, ended)


def closed(code: bytes) -> bytes:
    """The stream with its end marker, be it missing; raises ImageError where it is certain that more is missing."""
    ended = with_end(code)
    if ended is not code:
        frame = jpeg_frame(code)
        # T.81 D.2.1: an arithmetic decoder goes on with zeros at a marker, with nothing to warn of.
        # Zeros up to the end are codes, but hardly those of a picture.
        unsure = frame is None or frame.marker in _ARITHMETIC or not has_scan(code)
        if unsure or code.endswith(_ZEROS):
            raise ImageError(ErrorCode.TRUNCATED, "the JPEG has no end marker")
    return ended


def judge(warning: str, code: bytes, ended: bytes) -> set[str]:
    """Remarks by libjpeg's first `warning` (empty: none) on `ended`, which is `code` with its end marker.

    libjpeg tells the first warning alone.
    One about the header may hide another, so that the stream is decoded again without what it was about.

    Raises:
        ImageError: TRUNCATED or CORRUPT, as the warning says.
    """
    remarks: set[str] = set() if ended is code else {Remark.DAMAGED_END}
    damage = ErrorCode.CORRUPT if ended is code else ErrorCode.TRUNCATED
    stray = _STRAY.match(warning)
    if warning and stray is None and not _TRIVIAL.match(warning):
        raise ImageError(ErrorCode.TRUNCATED if _ENDS_EARLY.match(warning) else damage, f"libjpeg: {warning}")
    if stray is not None:
        count, marker = int(stray.group(1)), int(stray.group(2), 16)
        if count > STRAY_BYTES or 0xD0 <= marker <= 0xD7:
            raise ImageError(damage, f"libjpeg: {count} bytes that belong to no part of the picture")
        if marker == EOI[1]:
            # The end marker is the last thing that is read: nothing can be hidden.
            return remarks | {Remark.DAMAGED_END}
    if warning:
        bare = bare_jpeg(ended)
        hidden = _warning(bare) if bare != ended else ""
        if hidden and not _TRIVIAL.match(hidden):
            return remarks | judge(hidden, bare, bare if ended is code else bare_jpeg(code) + EOI)
    return remarks


def _warning(code: bytes) -> str:
    """libjpeg's first warning on a stream of any kind; no text where it has none."""
    frame = jpeg_frame(code)
    if frame is None:
        raise ImageError(ErrorCode.CORRUPT, "a JPEG without a frame header")
    deep = frame.bits == 12 and frame.marker != LOSSLESS
    if (frame.bits == 8 or deep) and frame.components in _COLOURS:
        try:
            # The codes of a lossy frame are read alike at either depth; what they mean is not asked.
            read = called_eight_bits(code) if deep else code
            # At an eighth of the size all is read, and little computed; lossless streams know no other size.
            smaller = {} if frame.marker == LOSSLESS else {"min_height": 1, "min_width": 1, "min_factor": 8}
            simplejpeg.decode_jpeg(read, _COLOURS[frame.components], **smaller)
        except ValueError as error:
            if _WARNING.match(str(error)):
                return str(error)
        else:
            return ""
    # What it refuses has ended GDCM's process.
    with foreign("libjpeg"):
        imagecodecs.jpeg8_decode(code)
    # Nobody tells of two components, grey with alpha.
    return _told_by_gdcm(code, frame) if frame.components in _COLOURS else ""


def _told_by_gdcm(code: bytes, frame: JpegFrame) -> str:
    """The first warning that GDCM's libjpeg prints."""
    import gdcm

    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((frame.columns, frame.rows, 1))
    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    # It was seen to abort over a warning about application data.
    fragment.SetByteStringValue(bare_jpeg(code))
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image.SetDataElement(element)
    kinds = gdcm.PhotometricInterpretation
    kind = {1: kinds.MONOCHROME2, 3: kinds.RGB, 4: kinds.CMYK}[frame.components]
    image.SetPhotometricInterpretation(kinds(kind))
    if frame.components > 1:
        image.SetPlanarConfiguration(0)
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    allocated = 8 if frame.bits <= 8 else 16
    image.SetPixelFormat(gdcm.PixelFormat(frame.components, allocated, frame.bits, frame.bits - 1, 0))
    with stderr_of_c() as told, foreign("GDCM"):
        image.GetBuffer()
    return first_warning(told)


def first_warning(printed: list[str]) -> str:
    """The first of the lines that is a warning of libjpeg's; no text where none is."""
    return next((line for line in printed if _WARNING.match(line)), "")
