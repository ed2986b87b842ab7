"""Compressed frames of DICOM whose second half is gone or zeroed, and code streams of another size than the header."""

from __future__ import annotations

import struct

import dicomkit as kit
import imagecodecs
import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.decode import decode
from ad_jobs.images.policy import PixelPolicy

POLICY = PixelPolicy(channels=3, height_px=96, width_px=120)
EOI = b"\xff\xd9"
_Y, _X = np.mgrid[0:96, 0:120]
GREY = (128 + 60 * np.sin(_X / 9) * np.cos(_Y / 13) + np.random.default_rng(1).normal(0, 6, _X.shape)).astype(np.uint8)
DEEP = GREY.astype(np.uint16) * 16
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)
KINDS = {
    "baseline": (imagecodecs.jpeg8_encode(GREY), GREY, JPEGBaseline8Bit),
    "colour": (imagecodecs.jpeg8_encode(COLOUR), COLOUR, JPEGBaseline8Bit),
    "extended": (imagecodecs.jpeg8_encode(DEEP, bitspersample=12), DEEP, JPEGExtended12Bit),
    "lossless": (imagecodecs.jpeg8_encode(DEEP, lossless=True, bitspersample=12), DEEP, JPEGLosslessSV1),
    "lossless-8": (imagecodecs.jpeg8_encode(GREY, lossless=True), GREY, JPEGLosslessSV1),
    "jpeg-ls": (imagecodecs.jpegls_encode(DEEP), DEEP, JPEGLSLossless),
    "jpeg-2000": (imagecodecs.jpeg2k_encode(DEEP, codecformat="j2k", reversible=True, level=0), DEEP, JPEG2000Lossless),
    "htj2k": (imagecodecs.htj2k_encode(DEEP, reversible=True), DEEP, HTJ2KLossless),
}
kinds = pytest.mark.parametrize("kind", KINDS)
jpegs = pytest.mark.parametrize("kind", ["baseline", "colour", "extended", "lossless", "lossless-8"])


def dicom(code: bytes, kind: str) -> bytes:
    _, pixels, syntax = KINDS[kind]
    ds = kit.dataset(pixels, bits=12 if pixels.dtype == np.uint16 else 8)
    if pixels.ndim == 3:
        ds.PhotometricInterpretation = "YBR_FULL"
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([code])
    ds["PixelData"].VR = "OB"
    return kit.encode(ds)


def outcome(code: bytes, kind: str) -> str | tuple[str, ...]:
    """The error code, or the remarks of what is scored."""
    try:
        return decode(dicom(code, kind), POLICY, kit.LIMITS).remarks
    except ImageError as error:
        return str(error.code)


@kinds
def test_a_frame_whose_second_half_is_gone_or_zeroed_is_damaged(kind: str) -> None:
    code = KINDS[kind][0]
    half = len(code) // 2
    zeros = bytes(len(code) - half - len(EOI))
    assert outcome(code, kind) == ()
    assert outcome(code[:half], kind) == "truncated"
    for damaged in (code[:half] + EOI, code[:half] + zeros + EOI, code[:half] + zeros):
        assert outcome(damaged, kind) in ("truncated", "corrupt")


@jpegs
def test_a_jpeg_frame_that_lacks_its_end_alone_is_remarked_on(kind: str) -> None:
    assert outcome(KINDS[kind][0][:-2], kind) == ("damaged_end",)


def test_rle_that_is_zeroed_has_too_few_bytes() -> None:
    ds = kit.dataset(GREY)
    ds.compress(RLELossless)
    ds["PixelData"].VR = "OB"
    data = kit.encode(ds)
    half = len(data) - len(ds.PixelData) // 2
    with pytest.raises(ImageError) as caught:
        decode(data[:half] + bytes(len(data) - half - 8) + data[-8:], POLICY, kit.LIMITS)
    assert caught.value.code in (ErrorCode.TRUNCATED, ErrorCode.CORRUPT)


def jp2(code: bytes) -> bytes:
    """A JP2 file that says nothing but its code stream, T.800 annex I."""
    return b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">L4s", len(code) + 8, b"jp2c") + code


@pytest.mark.parametrize("kind", ["baseline", "jpeg-ls", "jpeg-2000", "jp2"])
def test_the_size_of_the_code_stream_itself_is_judged(kind: str) -> None:
    stream = "jpeg-2000" if kind == "jp2" else kind
    code = bytearray(KINDS[stream][0])
    if stream == "jpeg-2000":
        struct.pack_into(">LL", code, 8, 40_000, 40_000)
    else:
        frame = code.index(b"\xff\xf7" if kind == "jpeg-ls" else b"\xff\xc0")
        struct.pack_into(">HH", code, frame + 5, 40_000, 40_000)
    spoiled = jp2(bytes(code)) if kind == "jp2" else bytes(code)
    assert outcome(spoiled, stream) == "too_many_pixels"
