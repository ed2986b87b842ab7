"""The strips and tiles of a TIFF page before they are decoded: what their code streams announce, and their damage.

Decoders allocate what a code stream says, whatever the directory says, and some tell nobody what they miss.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import imagecodecs

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images import jpeg2000, libjpeg
from ad_jobs.images.codestream import EOI, check_code, jpeg_frame
from ad_jobs.images.libraries import foreign
from ad_jobs.images.picture import check_size
from ad_jobs.images.policy import Limits

# Of TIFF 6.0, TIFF Technical Note 2, Adobe's DNG and registered later.
_JPEG = frozenset({6, 7, 33007, 34892})
_JPEG_2000 = frozenset({33003, 33004, 33005, 34712})
_JPEG_XL = frozenset({50002, 52546})
_JPEG_XR = frozenset({22610, 34934})
_PNG, _WEBP = 34933, 50001
_ZSTD = frozenset({34926, 50000})
_SHORT = 3
# PlanarConfiguration: each sample in segments of its own.
_SEPARATE = 2
# Samples of colour: WebP leaves out alpha that is opaque.
_WITH_ALPHA = 4
_JXR_COLUMNS, _JXR_ROWS, _JXR_OFFSET, _JXR_BYTES = 0xBC80, 0xBC81, 0xBCC0, 0xBCC1
# Writers may fill up to whole blocks of JPEG.
_BLOCK_PX = 16
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# Smaller ones are stored because packing takes bytes of its own.
_STORED_BYTES = 256


def check_segments(page: Any, index: int, limits: Limits) -> set[str]:
    """Remarks on the segments of a page, each of which is looked at before any is decoded.

    Raises:
        ImageError: a code stream announces more than its strip or tile holds, or other samples than the directory; is
            cut short, or damaged.
    """
    remarks: set[str] = set()
    compression = int(page.compression)
    rows, columns = _largest(page)
    # A tile may be larger than its page.
    check_size(rows, columns, limits)
    if compression in _JPEG | _JPEG_2000 | _JPEG_XL:
        for code in _segments(page, compression in _JPEG):
            announced = check_code(code, limits)
            if announced is None:
                continue
            if announced[0] > rows or announced[1] > columns:
                detail = f"page {index}: a code stream of {announced[0]} x {announced[1]} in {rows} x {columns}"
                raise ImageError(ErrorCode.CORRUPT, detail)
            if compression in _JPEG:
                remarks |= libjpeg.examine(code)
            elif compression in _JPEG_2000:
                jpeg2000.check_zeros(jpeg2000.contiguous(code))
            _check_samples(page, index, *_samples(code, page))
    elif compression in _JPEG_XR or compression in (_PNG, _WEBP):
        for code in _segments(page, False):
            if compression in _JPEG_XR:
                _check_jpegxr(code, index, (rows, columns))
            _check_samples(page, index, *_samples(code, page))
    elif compression in _ZSTD:
        for code in _segments(page, False):
            check_stored_blocks(code)
    return remarks


def _largest(page: Any) -> tuple[int, int]:
    """(rows, columns) that a strip or tile of the page has at most."""
    if page.is_tiled:
        rows, columns = int(page.tilelength), int(page.tilewidth)
    else:
        rows, columns = min(int(page.rowsperstrip), int(page.imagelength)), int(page.imagewidth)
    return rows + -rows % _BLOCK_PX, columns + -columns % _BLOCK_PX


def _segments(page: Any, with_tables: bool) -> Iterator[bytes]:
    """The bytes of each strip or tile; of a JPEG, with the tables that the directory keeps for all."""
    file = page.parent.filehandle
    tables, header = (page.jpegtables, page.jpegheader) if with_tables else (None, None)
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        code = file.read(count)
        if header is not None:
            code = header + code + EOI
        # TIFF Technical Note 2: an abbreviated stream with tables only, and one with none.
        elif tables is not None:
            code = tables.removesuffix(EOI) + code[2:]
        yield code


def _samples(code: bytes, page: Any) -> tuple[int, int]:
    """How many samples a pixel of a code stream has, and their bits; decoded where that is the shortest way to them."""
    frame = jpeg_frame(code)
    if frame is not None:
        return frame.components, frame.bits
    if contiguous := jpeg2000.contiguous(code):
        # T.800 A.5.1: the precision of the first component, its first bit the sign.
        return jpeg2000.components(contiguous), (contiguous[42] & 0x7F) + 1
    with foreign("imagecodecs"):
        compression = int(page.compression)
        if compression == _PNG:
            values = imagecodecs.png_decode(code)
        elif compression == _WEBP:
            values = imagecodecs.webp_decode(code, hasalpha=int(page.samplesperpixel) == _WITH_ALPHA or None)
        elif compression in _JPEG_XR:
            values = imagecodecs.jpegxr_decode(code)
        else:
            values = imagecodecs.jpegxl_decode(code)
    return values.shape[2] if values.ndim == 3 else 1, values.dtype.itemsize * 8


def _check_samples(page: Any, index: int, samples: int, bits: int) -> None:
    """Raise ImageError unless a code stream has the samples of its page: tifffile lays out whatever was decoded."""
    separate = int(page.planarconfig) == _SEPARATE
    expected = 1 if separate else int(page.samplesperpixel)
    if samples != expected:
        detail = f"page {index}: SamplesPerPixel is {expected}, a code stream has {samples}"
        raise ImageError(ErrorCode.CORRUPT, detail)
    said = int(page.bitspersample)
    # Fewer bits than BitsPerSample may lie in words, or bytes, of the same size.
    if max(8, bits) > max(8, said) or (bits <= 8) != (said <= 8):
        raise ImageError(ErrorCode.CORRUPT, f"page {index}: BitsPerSample is {said}, a code stream has {bits}")


def _check_jpegxr(code: bytes, index: int, largest: tuple[int, int]) -> None:
    """Raise ImageError if a JPEG XR file is cut short, or larger than its strip or tile: its decoder asks for neither.

    ITU-T T.832, annex A: a directory as in TIFF.
    """
    with foreign("JPEG XR"):
        (directory,) = struct.unpack_from("<L", code, 4)
        (entries,) = struct.unpack_from("<H", code, directory)
        fields = [struct.unpack_from("<HHLL", code, directory + 2 + 12 * entry) for entry in range(entries)]
    told = {tag: value & 0xFFFF if kind == _SHORT else value for tag, kind, _, value in fields}
    end = told.get(_JXR_OFFSET, 0) + told.get(_JXR_BYTES, 0)
    if end > len(code):
        raise ImageError(ErrorCode.TRUNCATED, f"page {index}: JPEG XR up to byte {end} of {len(code)}")
    rows, columns = told.get(_JXR_ROWS, 0), told.get(_JXR_COLUMNS, 0)
    if rows > largest[0] or columns > largest[1]:
        detail = f"page {index}: a code stream of {rows} x {columns} in {largest[0]} x {largest[1]}"
        raise ImageError(ErrorCode.CORRUPT, detail)


def check_stored_blocks(code: bytes) -> None:
    """Raise ImageError if a block of a Zstandard frame lies there unpacked although it packs well.

    An encoder stores what does not pack.
    Zeros where its bytes were are a valid block, and without a checksum nothing else tells of them.
    """
    if code[:4] != _ZSTD_MAGIC or len(code) < 6:
        return
    # RFC 8878, 3.1.1.1: window descriptor, dictionary id, content size.
    descriptor = code[4]
    single, sizes = descriptor >> 5 & 1, descriptor >> 6
    offset = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3] + ((1 if single else 0) if sizes == 0 else 1 << sizes)
    while offset + 3 <= len(code):
        # 3.1.1.2: last block, type, size; a repeated byte takes one.
        block = int.from_bytes(code[offset : offset + 3], "little")
        kind, size = block >> 1 & 3, block >> 3
        offset += 3
        if kind == 0 and size >= _STORED_BYTES:
            with foreign("zstd"):
                packed = len(imagecodecs.zstd_encode(code[offset : offset + size], level=1))
            if packed < size * 7 // 8:
                raise ImageError(ErrorCode.CORRUPT, "zstd: a stored block holds what an encoder would have packed")
        offset += 1 if kind == 1 else size
        if block & 1:
            return
