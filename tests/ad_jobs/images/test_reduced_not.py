"""What is decoded whole although the policy lets it be reduced, and what says so."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import dicomkit as kit
import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLosslessSV1, JPEGLSLossless
from reducedkit import COLUMNS, FACTOR, GREY12, REDUCED, ROWS, WHOLE, colour, file, j2k, jpeg, stored, tiled

from ad_jobs.images import reduced_jpeg2000
from ad_jobs.images.decode import decode, decode_each
from ad_jobs.images.dicom import open_dicom

REMARK = ("decoded_whole",)


def inserted(code: bytes, segment: bytes) -> bytes:
    """The code stream with a marker segment before its first tile part."""
    at = code.index(b"\xff\x90")
    return code[:at] + segment + code[at:]


def with_byte(code: bytes, offset: int, value: int) -> bytes:
    return code[:offset] + bytes([value]) + code[offset + 1 :]


def adobe(code: bytes) -> bytes:
    return code[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01" + code[2:]


RGN = b"\xff\x5e\x00\x05\x00\x00\x00"
UNUSUAL: dict[str, Callable[[], bytes]] = {
    "no resolutions": lambda: file([j2k(GREY12, 12, resolutions=1)], JPEG2000Lossless, GREY12, 12),
    "odd tiles": lambda: file([tiled(stored(8), 130, 101)], JPEG2000Lossless, stored(8)),
    "region of interest": lambda: file([inserted(j2k(GREY12, 12), RGN)], JPEG2000Lossless, GREY12, 12),
    "bits in place of signed values": lambda: file(
        [j2k(stored(12, -2048).view("u2") & 0xFFF, 12)], JPEG2000Lossless, stored(12, -2048), 12
    ),
    "signed values under an unsigned header": lambda: file([j2k(stored(12, -2048), 12)], JPEG2000Lossless, GREY12, 12),
    "few levels": lambda: file([j2k(stored(12) >> 8, 4)], JPEG2000Lossless, stored(12) >> 8, 4),
    "bits above those stored": lambda: file([j2k(GREY12, 16)], JPEG2000Lossless, GREY12, 12),
    "deep colour": lambda: file(
        [j2k(np.stack([GREY12] * 3, axis=-1), 12)], JPEG2000Lossless, np.stack([GREY12] * 3, axis=-1), 12
    ),
    "JPEG of signed values": lambda: file([jpeg(stored(8) >> 1)], JPEGBaseline8Bit, stored(8, -128) >> 1),
    "JPEG with Adobe's marker": lambda: file(
        [adobe(jpeg(colour()))], JPEGBaseline8Bit, colour(), PhotometricInterpretation="YBR_FULL_422"
    ),
    "JPEG, turned, with part of a block": lambda: jpeg(stored(8), exif=_turned()),
}


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("kind", UNUSUAL)
def test_the_unusual_is_decoded_whole_and_says_so(kind: str) -> None:
    data = UNUSUAL[kind]()
    whole, reduced = decode(data, WHOLE, kit.LIMITS), decode(data, REDUCED, kit.LIMITS)
    assert np.array_equal(whole.frames[0].pixels, reduced.frames[0].pixels)
    assert sorted({*reduced.remarks} - {*whole.remarks}) == list(REMARK)
    # Whoever wants it whole is not told of it, not even beside one who does not.
    assert [decoded.remarks for decoded in decode_each(data, [WHOLE, REDUCED], kit.LIMITS)] == [
        whole.remarks,
        reduced.remarks,
    ]


@pytest.mark.parametrize(
    "unusual",
    [
        lambda code: with_byte(code, 43, 2),
        lambda code: with_byte(code, 19, 1),
        lambda code: with_byte(code, 35, 1),
        lambda code: with_byte(code, 6, 0x80),
        lambda code: inserted(code, b"\xff\x53\x00\x09\x00\x00\x02\x04\x04\x00\x01"),
        lambda code: code[: code.index(b"\xff\x93")] + RGN + code[code.index(b"\xff\x93") :],
    ],
    ids=["subsampled", "image offset", "tile offset", "part 2", "component's own way", "a tile's own way"],
)
def test_a_code_stream_of_another_form_is_not_reduced(unusual: Callable[[bytes], bytes]) -> None:
    code = j2k(GREY12, 12)
    assert reduced_jpeg2000.decode(code, FACTOR) is not None
    assert reduced_jpeg2000.decode(unusual(code), FACTOR) is None


def _lossless_jpeg() -> bytes:
    return bytes(imagecodecs.jpeg8_encode(GREY12, bitspersample=12, lossless=True, predictor=1))


def _palette() -> bytes:
    tables: dict[str, Any] = {}
    for name in ("Red", "Green", "Blue"):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tables[f"{name}PaletteColorLookupTableData"] = (np.arange(256) * 257).astype("<u2").tobytes()
    like = stored(8)
    return file([j2k(like, 8)], JPEG2000Lossless, like, PhotometricInterpretation="PALETTE COLOR", **tables)


def _tiff() -> bytes:
    stream = BytesIO()
    Image.fromarray(stored(8)).save(stream, "TIFF")
    return stream.getvalue()


def _inks() -> bytes:
    stream = BytesIO()
    Image.fromarray(colour()).convert("CMYK").save(stream, "JPEG", quality=95)
    return stream.getvalue()


ORDINARY: dict[str, Callable[[], bytes]] = {
    "native": lambda: kit.dicom(GREY12, bits=12),
    "padding": lambda: file([j2k(GREY12, 12)], JPEG2000Lossless, GREY12, 12, PixelPaddingValue=0),
    "palette": _palette,
    "an older High Bit": lambda: file([j2k(GREY12 << 4, 16)], JPEG2000Lossless, GREY12, 12, HighBit=15),
    "JPEG-LS": lambda: file([bytes(imagecodecs.jpegls_encode(GREY12))], JPEGLSLossless, GREY12, 12),
    "JPEG lossless": lambda: file([_lossless_jpeg()], JPEGLosslessSV1, GREY12, 12),
    "JPEG of 12 bits": lambda: file(
        [bytes(imagecodecs.jpeg8_encode(GREY12, level=95, bitspersample=12))], JPEGExtended12Bit, GREY12, 12
    ),
    "JPEG of four inks": lambda: _inks(),
    "PNG": lambda: bytes(imagecodecs.png_encode(stored(8))),
    "TIFF": _tiff,
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_what_has_one_size_or_no_mean_is_decoded_whole_without_a_word(kind: str) -> None:
    data = ORDINARY[kind]()
    whole, reduced = decode(data, WHOLE, kit.LIMITS), decode(data, REDUCED, kit.LIMITS)
    assert np.array_equal(whole.frames[0].pixels, reduced.frames[0].pixels)
    assert whole.remarks == reduced.remarks


def test_padding_is_not_mixed_into_what_it_borders_on() -> None:
    like = GREY12.copy()
    like[:, :100] = 0
    plain = file([j2k(like, 12)], JPEG2000Lossless, like, 12)
    padded = file([j2k(like, 12)], JPEG2000Lossless, like, 12, PixelPaddingValue=0)
    assert open_dicom(plain, kit.LIMITS).reduction(REDUCED) == FACTOR
    assert open_dicom(padded, kit.LIMITS).reduction(REDUCED) == 1


def test_damage_is_judged_by_the_whole() -> None:
    code = j2k(GREY12, 12)
    cut = file([code[: len(code) // 2] + b"\xff\xd9"], JPEG2000Lossless, GREY12, 12)
    stray = jpeg(stored(8))
    for data in (cut, stray[: len(stray) // 2]):
        with pytest.raises(kit.ImageError) as whole:
            decode(data, WHOLE, kit.LIMITS)
        with pytest.raises(kit.ImageError) as reduced:
            decode(data, REDUCED, kit.LIMITS)
        assert (reduced.value.code, reduced.value.detail) == (whole.value.code, whole.value.detail)


def test_a_jpeg_whose_end_is_missing_is_whole_and_remarked() -> None:
    data = jpeg(stored(8))[:-2]
    assert decode(data, REDUCED, kit.LIMITS).remarks == ("damaged_end", "decoded_whole")


def test_every_pixel_is_looked_at_before_a_frame_is_called_constant() -> None:
    like = np.full((ROWS, COLUMNS), 1000, np.uint16)
    data = file([j2k(like, 12)], JPEG2000Lossless, like, 12)
    assert decode(data, REDUCED, kit.LIMITS).frames[0].constant
    like[1, 1] = 1001
    data = file([j2k(like, 12)], JPEG2000Lossless, like, 12)
    assert not decode(data, REDUCED, kit.LIMITS).frames[0].constant


def test_each_model_gets_what_it_gets_alone() -> None:
    small = REDUCED.model_copy(update={"height_px": 12, "width_px": 16})
    data = file([j2k(GREY12, 12)], JPEG2000Lossless, GREY12, 12)
    policies = [REDUCED, WHOLE, small, REDUCED]
    together = decode_each(data, policies, kit.LIMITS)
    for decoded, policy in zip(together, policies, strict=True):
        alone = decode(data, policy, kit.LIMITS)
        assert np.array_equal(decoded.frames[0].pixels, alone.frames[0].pixels)
    assert not np.array_equal(together[0].frames[0].pixels, together[1].frames[0].pixels)
