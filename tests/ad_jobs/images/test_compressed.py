"""Code streams that say something else than the header around them, beyond what every kind and form is tested for."""

from __future__ import annotations

from typing import Any

import dicomkit as kit
import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from dicomkit import COLUMNS, ROWS
from PIL import Image
from pydicom.uid import (
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.decode import decode

# Smooth: a lossy encoder keeps it.
Y, X = np.mgrid[0:ROWS, 0:COLUMNS]
RGB = np.stack([40 + 9 * X, 200 - 12 * Y, 60 + 5 * X + 6 * Y], axis=-1).astype(np.uint8)
GREY12 = (200 + 150 * X + 60 * Y).astype(np.uint16)


def file(frames: list[bytes], syntax: str, like: npt.NDArray[Any], bits: int | None = None, **attributes: Any) -> bytes:
    """A file of these code streams under the header that pixels like those would have."""
    ds = kit.dataset(like, bits=bits, **attributes)
    kit.encapsulated(ds, frames)
    ds.file_meta.TransferSyntaxUID = syntax
    return kit.encode(ds)


def colour(data: bytes) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """The picture in 8-bit steps, and the remarks."""
    decoded = decode(data, kit.policy(channels=3), kit.LIMITS)
    return decoded.frames[0].pixels.transpose(1, 2, 0) / 257, decoded.remarks


def baseline(space: str, subsampling: str = "444") -> bytes:
    """RGB as a JPEG in that colour space."""
    return bytes(
        imagecodecs.jpeg8_encode(RGB, level=100, colorspace="RGB", outcolorspace=space, subsampling=subsampling)
    )


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422", "ybr_full_422 "])
@pytest.mark.parametrize("planar", [0, 1])
def test_jpeg_in_ycbcr_becomes_rgb_whatever_its_planar_configuration(photometric: str, planar: int) -> None:
    data = file(
        [baseline("YCBCR")], JPEGBaseline8Bit, RGB, PhotometricInterpretation=photometric, PlanarConfiguration=planar
    )
    shown, remarks = colour(data)
    assert np.abs(shown - RGB).max() < 6
    assert remarks == (("planar_configuration_assumed",) if planar else ())


def test_jfif_under_a_header_of_another_space_is_ycbcr_and_components_called_rgb_are_rgb() -> None:
    # YBR_ICT and YBR_RCT are JPEG 2000's own.
    for photometric in ("RGB", "YBR_ICT", "YBR_RCT"):
        code = baseline("YCBCR")
        shown, remarks = colour(file([code], JPEGBaseline8Bit, RGB, PhotometricInterpretation=photometric))
        assert np.abs(shown - RGB).max() < 6
        assert remarks == ("photometric_interpretation_assumed",)
    shown, remarks = colour(file([baseline("RGB")], JPEGBaseline8Bit, RGB, PhotometricInterpretation="YBR_FULL_422"))
    assert np.abs(shown - RGB).max() < 6
    assert remarks == ("photometric_interpretation_assumed",)
    assert colour(file([baseline("RGB")], JPEGBaseline8Bit, RGB))[1] == ()


def test_jpeg_of_12_bits_in_colour() -> None:
    deep = RGB.astype(np.uint16) * 16
    code = imagecodecs.jpeg8_encode(deep, level=100, bitspersample=12, colorspace="RGB", outcolorspace="RGB")
    shown, _ = colour(file([bytes(code)], JPEGExtended12Bit, deep, bits=12))
    assert np.abs(shown - deep / 4095 * 255).max() < 1


def test_a_lossy_overshoot_is_clipped_and_a_deeper_picture_refused() -> None:
    code = bytes(imagecodecs.jpeg8_encode(GREY12, level=100, bitspersample=12))
    header = {"BitsStored": 11, "HighBit": 10}
    error = kit.refused(file([code], JPEGExtended12Bit, GREY12, **header))
    assert error.code == ErrorCode.CORRUPT
    assert "BitsStored is 11" in error.detail
    # Eleven bits and a little more.
    slightly = bytes(imagecodecs.jpeg8_encode(np.minimum(GREY12, 2060), level=100, bitspersample=12))
    shown = kit.grey(file([slightly], JPEGExtended12Bit, GREY12, **header))
    assert shown.max() == 1.0
    assert np.abs(shown - np.minimum(GREY12, 2047) / 2047).max() < 0.02


def test_jpeg_2000_in_its_file_format_and_of_high_throughput() -> None:
    plain = kit.grey(kit.dicom(GREY12, bits=12))
    boxed = bytes(imagecodecs.jpeg2k_encode(GREY12, 0, codecformat="jp2", reversible=True, bitspersample=12))
    assert boxed.startswith(b"\x00\x00\x00\x0cjP")
    assert np.array_equal(kit.grey(file([boxed], JPEG2000Lossless, GREY12, bits=12)), plain)
    fast = bytes(imagecodecs.htj2k_encode(GREY12))
    assert np.array_equal(kit.grey(file([fast], HTJ2KLossless, GREY12, bits=12)), plain)


def test_a_smooth_picture_of_high_throughput_is_whole_although_it_has_zeros() -> None:
    wave = (128 + 100 * np.sin(np.arange(64) / 9)).astype(np.uint8)
    smooth = np.asarray(
        Image.fromarray(np.repeat(wave[:, None], 64, axis=1)).resize((512, 512), Image.Resampling.BICUBIC)
    )
    code = bytes(imagecodecs.htj2k_encode(smooth, reversible=True))
    assert bytes(128) in code
    assert np.array_equal(kit.grey(file([code], HTJ2KLossless, smooth)), kit.grey(kit.dicom(smooth)))
    half = len(code) // 2
    for zeroed in (code[:half] + bytes(len(code) - half), code[:half] + bytes(half // 2) + code[half + half // 2 :]):
        with pytest.raises(ImageError):
            kit.grey(file([zeroed], HTJ2KLossless, smooth))


@pytest.mark.parametrize("photometric", ["YBR_RCT", "RGB"])
def test_the_transformation_of_jpeg_2000_is_undone_once(photometric: str) -> None:
    code = bytes(imagecodecs.jpeg2k_encode(RGB, 0, codecformat="j2k", reversible=True, mct=True))
    shown, _ = colour(file([code], JPEG2000Lossless, RGB, PhotometricInterpretation=photometric))
    assert np.allclose(shown, RGB)


def test_a_code_stream_says_what_it_is_whatever_the_transfer_syntax() -> None:
    code = kit.codes(kit.dataset(GREY12, bits=12), "jpeg-lossless")
    decoded = decode(file(code, JPEG2000Lossless, GREY12, bits=12), kit.policy(), kit.LIMITS)
    assert np.array_equal(decoded.frames[0].pixels[0] / 65535, kit.grey(kit.dicom(GREY12, bits=12)))
    assert decoded.remarks == ("transfer_syntax_assumed",)
    for syntax in (JPEG2000Lossless, JPEGBaseline8Bit):
        assert "TransferSyntaxUID" in kit.refused(file([bytes(range(100))], syntax, GREY12, bits=12)).detail


def test_rle_of_other_segments_than_the_header_says_is_refused() -> None:
    code = kit.codes(kit.dataset(GREY12, bits=12), "rle")
    error = kit.refused(file(code, RLELossless, RGB))
    assert error.code == ErrorCode.CORRUPT
    assert "SamplesPerPixel is 3" in error.detail


def test_other_samples_than_the_header_says_are_refused() -> None:
    error = kit.refused(file([baseline("YCBCR")], JPEGBaseline8Bit, RGB[..., 0]))
    assert error.code == ErrorCode.CORRUPT
    assert error.detail == "SamplesPerPixel is 1, frame 0 has 3"


@pytest.mark.parametrize("name", sorted(kit.SYNTAXES))
def test_colour_in_every_syntax(name: str) -> None:
    for pixels in (RGB, RGB.astype(np.uint16) * 257):
        shown, remarks = colour(kit.in_form(kit.dataset(pixels), name))
        assert np.allclose(shown, RGB, atol=1e-3)
        assert remarks == ()


# Twelve bits, below and above 0.
SIGNED = (GREY12.astype("<i2") - 1800).astype("<i2")
MASKED = (SIGNED.view("<u2") & 0xFFF).astype("<u2")


@pytest.mark.parametrize("near", [0, 1])
@pytest.mark.parametrize(
    ("cells", "high"), [(MASKED, 11), (SIGNED.view("<u2"), 11), (MASKED << 4, 15)], ids=["masked", "extended", "above"]
)
def test_the_sign_of_a_code_stream_is_restored_before_anything_is_clipped(
    cells: npt.NDArray[Any], high: int, near: int
) -> None:
    code = bytes(imagecodecs.jpegls_encode(cells.astype("<u2"), near))
    data = file([code], JPEGLSNearLossless, SIGNED, bits=12, HighBit=high)
    decoded = decode(data, kit.policy(), kit.LIMITS)
    shown = decoded.frames[0].pixels[0] / 65535
    assert np.abs(shown - (SIGNED + 2048) / 4095).max() < (near + 0.1) / 4095
    assert decoded.remarks == ()


def test_a_lossy_overshoot_of_signed_values_is_clipped() -> None:
    beyond = np.where(SIGNED < 0, SIGNED, 2300).astype("<i2")
    code = bytes(imagecodecs.jpegls_encode(beyond.view("<u2"), 1))
    shown = kit.grey(file([code], JPEGLSNearLossless, SIGNED, bits=12))
    assert np.array_equal(shown == 1.0, beyond == 2300)


def test_signed_values_below_a_high_bit_that_is_not_the_cells_last() -> None:
    code = bytes(imagecodecs.ljpeg_encode((MASKED << 2).astype("<u2"), bitspersample=14))
    shown = kit.grey(file([code], JPEGLosslessSV1, SIGNED, bits=12, HighBit=13))
    assert np.allclose(shown, (SIGNED + 2048) / 4095, atol=kit.HALF_STEP)


@pytest.mark.parametrize("space", ["RGB", "YCBCR"])
def test_jpeg_in_colour_is_unsigned_whatever_the_header(space: str) -> None:
    photometric = {"RGB": "RGB", "YCBCR": "YBR_FULL_422"}[space]
    data = file([baseline(space)], JPEGBaseline8Bit, RGB, PhotometricInterpretation=photometric, PixelRepresentation=1)
    shown, remarks = colour(data)
    assert np.abs(shown - RGB).max() < 6
    assert remarks == ("pixel_representation_ignored",)


def plain_space(pixels: npt.NDArray[Any]) -> dict[str, str]:
    """What keeps an encoder of JPEG from changing the colour space."""
    return {"colorspace": "RGB", "outcolorspace": "RGB"} if pixels.ndim == 3 else {}


EIGHT = {
    "jpeg": (JPEGBaseline8Bit, lambda pixels: imagecodecs.jpeg8_encode(pixels, level=100, **plain_space(pixels))),
    "jpeg-lossless": (
        JPEGLosslessSV1,
        lambda pixels: imagecodecs.jpeg8_encode(pixels, lossless=True, **plain_space(pixels)),
    ),
    "jpeg-ls": (JPEGLSLossless, lambda pixels: imagecodecs.jpegls_encode(pixels, 0)),
    "jpeg2000": (
        JPEG2000Lossless,
        lambda pixels: imagecodecs.jpeg2k_encode(pixels, 0, codecformat="j2k", reversible=True),
    ),
}


@pytest.mark.parametrize("name", EIGHT)
@pytest.mark.parametrize("bits", [12, 16])
def test_a_code_stream_of_fewer_bits_than_the_header_says_has_its_own_full_scale(name: str, bits: int) -> None:
    syntax, encoder = EIGHT[name]
    for pixels in (RGB[..., 1], RGB):
        wide = pixels.astype(np.uint16)
        code = bytes(encoder(np.ascontiguousarray(pixels)))
        decoded = decode(file([code], syntax, wide, bits=bits), kit.policy(channels=3), kit.LIMITS)
        shown = decoded.frames[0].pixels.transpose(1, 2, 0) / 257
        assert np.abs(shown - pixels.reshape(ROWS, COLUMNS, -1)).max() < (6 if name == "jpeg" else 0.1)
        assert decoded.remarks == ("bits_stored_assumed",)
    # A rescale without a window goes with them, a window is in what is there.
    code = bytes(encoder(np.ascontiguousarray(RGB[..., 1])))
    like = RGB[..., 1].astype(np.uint16)
    plain = kit.grey(file([code], syntax, like, bits=bits))
    rescaled = file([code], syntax, like, bits=bits, RescaleSlope=2, RescaleIntercept=-100)
    assert np.allclose(kit.grey(rescaled), plain, atol=2 * kit.HALF_STEP)
    windowed = file([code], syntax, like, bits=bits, WindowCenter=128, WindowWidth=256)
    assert np.allclose(kit.grey(windowed), plain, atol=2 * kit.HALF_STEP)
