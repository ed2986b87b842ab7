"""JPEG in, numbers out: of 8 and 12 bits, in colour and with odd headers; and what is told of damage."""

from __future__ import annotations

from io import BytesIO

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from rasterkit import COLUMNS, GREY8, HALF_STEP, LIMITS, RGB8, ROWS, policy, refused, saved, shown

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images import libjpeg
from ad_jobs.images.codestream import jpeg_frame
from ad_jobs.images.decode import decode
from ad_jobs.images.lossless_jpeg import surplus_bytes


@pytest.mark.parametrize("pixels", [GREY8, RGB8], ids=["grey", "colour"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_what_pillow_makes_of_it(pixels: np.ndarray, progressive: bool) -> None:
    data = saved(Image.fromarray(pixels), "JPEG", quality=90, progressive=progressive)
    assert np.allclose(shown(data), np.asarray(Image.open(BytesIO(data))) / 255, atol=HALF_STEP)


def test_cmyk_jpeg_becomes_rgb() -> None:
    cmyk = Image.fromarray(RGB8).convert("CMYK")
    data = saved(cmyk, "JPEG", quality=95, subsampling=0)
    expected = np.asarray(Image.open(BytesIO(data)).convert("RGB")) / 255
    assert np.allclose(shown(data), expected, atol=HALF_STEP)
    assert decode(data, policy(), LIMITS).header["photometric"] == "CMYK"


def test_a_12_bit_jpeg_keeps_its_levels() -> None:
    values = np.linspace(0, 4095, ROWS * COLUMNS).astype(np.uint16).reshape(ROWS, COLUMNS)
    data = imagecodecs.jpeg8_encode(values, level=100, bitspersample=12)
    assert np.abs(shown(data) - values / 4095).max() < 4 / 4095
    assert decode(data, policy(), LIMITS).header["bits"] == 12


def test_broken_exif_does_not_cost_the_pixels() -> None:
    data = saved(Image.fromarray(GREY8), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert shown(data).shape == (ROWS, COLUMNS)


EOI = b"\xff\xd9"
_Y, _X = np.mgrid[0:96, 0:120]
GRAINY = (128 + 60 * np.sin(_X / 9) * np.cos(_Y / 13) + np.random.default_rng(1).normal(0, 6, _X.shape)).astype(
    np.uint8
)
COLOUR = np.stack([GRAINY, GRAINY[::-1], GRAINY[:, ::-1]], axis=-1)
KINDS = {
    "grey": saved(Image.fromarray(GRAINY), "JPEG"),
    "colour": saved(Image.fromarray(COLOUR), "JPEG"),
    "progressive": saved(Image.fromarray(COLOUR), "JPEG", progressive=True),
    "cmyk": saved(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"),
    "lossless": imagecodecs.jpeg8_encode(GRAINY, lossless=True),
    "twelve-bits": imagecodecs.jpeg8_encode(GRAINY.astype(np.uint16) * 16, bitspersample=12),
}
kinds = pytest.mark.parametrize("code", KINDS.values(), ids=KINDS)


def remarks(data: bytes) -> tuple[str, ...]:
    return decode(data, policy(), LIMITS).remarks


@kinds
def test_a_jpeg_whose_second_half_is_gone_or_zeroed_is_damaged(code: bytes) -> None:
    half = len(code) // 2
    zeros = bytes(len(code) - half - len(EOI))
    assert remarks(code) == ()
    assert refused(code[:half]).code == refused(code[:half] + EOI).code == ErrorCode.TRUNCATED
    for zeroed in (code[:half] + zeros + EOI, code[:half] + zeros):
        assert refused(zeroed).code in (ErrorCode.TRUNCATED, ErrorCode.CORRUPT)


@kinds
def test_a_jpeg_that_lacks_its_end_alone_is_scored_with_a_remark(code: bytes) -> None:
    whole, endless = decode(code, policy(), LIMITS), decode(code[:-2], policy(), LIMITS)
    assert np.array_equal(whole.frames[0].pixels, endless.frames[0].pixels)
    assert endless.remarks == remarks(code[:-2] + bytes(20) + EOI) == ("damaged_end",)


@kinds
def test_what_follows_the_end_is_no_damage(code: bytes) -> None:
    assert remarks(code + b"appended by something" * 10) == ()


@pytest.mark.parametrize("kind", ["grey", "progressive"])
def test_a_warning_about_the_header_hides_no_damage(kind: str) -> None:
    odd = KINDS[kind].replace(b"JFIF\0\1", b"JFIF\0\2")
    assert odd != KINDS[kind]
    assert remarks(odd) == ()
    assert refused(odd[: len(odd) // 2] + EOI).code == ErrorCode.TRUNCATED


def test_subsampling_that_one_binding_refuses_is_decoded_and_judged_by_the_others() -> None:
    # Full chrominance under luminance of a third: the sampling factors of the first component, rewritten.
    code = bytearray(saved(Image.fromarray(COLOUR), "JPEG", subsampling=0))
    frame = code.index(b"\xff\xc0")
    code[frame + 11] = 0x11
    code[frame + 14] = 0x31
    assert refused(bytes(code[: len(code) // 2]) + EOI).code in (ErrorCode.TRUNCATED, ErrorCode.CORRUPT)


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("bits", [9, 12, 16])
def test_the_bits_of_a_lossless_jpeg_are_counted_again(bits: int, predictor: int) -> None:
    noise = np.random.default_rng(bits).integers(0, 1 << bits, (40, 50), dtype=np.uint16)
    values = (noise >> _X[:40, :50] // 10).astype(np.uint16)
    code = imagecodecs.jpeg8_encode(values, lossless=True, bitspersample=bits, predictor=predictor)
    frame = jpeg_frame(code)
    assert frame is not None
    assert surplus_bytes(code, frame, values) == (0, b"")
    half = len(code) // 2
    for damaged in (code[:half] + EOI, code[:half] + bytes(half) + EOI):
        with pytest.raises(ImageError):
            libjpeg.decode(damaged, frame)


@pytest.mark.parametrize("fill", [0, 1, 2, 100])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_fill_bytes_before_the_end_of_a_lossless_jpeg_are_no_damage(bits: int, fill: int) -> None:
    ramp = np.tile(np.linspace(0, (1 << bits) - 1, 32), (16, 1)).astype(np.uint8 if bits == 8 else np.uint16)
    code = bytes(imagecodecs.ljpeg_encode(ramp, bitspersample=bits))
    filled = code[:-2] + b"\xff" * fill + EOI
    frame = jpeg_frame(filled)
    assert frame is not None
    values, told = libjpeg.decode(filled, frame)
    assert np.array_equal(values, ramp)
    assert told == set()
