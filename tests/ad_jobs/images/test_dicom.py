"""DICOM in, numbers out: transfer syntaxes, colour, frames, limits, and what is no image."""

from __future__ import annotations

from typing import Any

import dicomkit as kit
import numpy as np
import pydicom
import pytest
from dicomkit import COLUMNS, HALF_STEP, LIMITS, ROWS, grey, policy, refused
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from ad_jobs.errors import ErrorCode
from ad_jobs.images.decode import decode
from ad_jobs.images.dicom import decodable
from ad_jobs.images.policy import Limits


@pytest.mark.parametrize("name", sorted(kit.SYNTAXES))
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_syntaxes_give_the_pixels_of_the_native_file(name: str, signed: bool) -> None:
    values = (kit.ramp() * 16).astype("<i2" if signed else "<u2") - (1800 if signed else 0)
    attributes = {"WindowCenter": "300", "WindowWidth": "900"}
    native = grey(kit.dicom(values, bits=12, **attributes))
    packed = kit.compressed(kit.dataset(values, bits=12, **attributes), name)
    assert np.array_equal(grey(packed), native)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_encoding_of_the_data_set_gives_the_same_pixels(syntax: pydicom.uid.UID) -> None:
    values = kit.ramp() * 16
    ds = kit.dataset(values, bits=12)
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = values.astype(">u2").tobytes()
    ds.file_meta.TransferSyntaxUID = syntax
    data = kit.encode(ds)
    decoded = decode(data, policy(), LIMITS)
    assert decoded.header["transfer_syntax"] == syntax
    assert np.array_equal(decoded.frames[0].pixels[0] / 65535, grey(kit.dicom(values, bits=12)))


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_files_without_preamble_and_meta_are_read(implicit: bool, little: bool) -> None:
    values = kit.ramp() * 16
    ds = kit.dataset(values if little else values.astype(">u2").view("<u2"), bits=12)
    del ds.file_meta
    stream = pydicom.filebase.DicomBytesIO()
    pydicom.dcmwrite(stream, ds, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    data = stream.getvalue()
    assert data[128:132] != b"DICM"
    assert np.array_equal(grey(data), grey(kit.dicom(values, bits=12)))


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_of_either_planar_configuration(planar: int) -> None:
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (ROWS, COLUMNS, 3), dtype=np.uint8)
    body = (rgb if planar == 0 else rgb.transpose(2, 0, 1)).tobytes()
    data = kit.dicom(rgb, PlanarConfiguration=planar, PixelData=body)
    frame = decode(data, policy(channels=3), LIMITS).frames[0]
    assert np.array_equal(frame.pixels, rgb.transpose(2, 0, 1).astype(np.uint16) * 257)
    luma = decode(data, policy(channels=1), LIMITS).frames[0].pixels
    assert luma.shape == (1, ROWS, COLUMNS)
    assert np.allclose(luma[0] / 65535, rgb @ [0.299, 0.587, 0.114] / 255, atol=HALF_STEP)


def test_ybr_becomes_rgb() -> None:
    rgb = np.zeros((ROWS, COLUMNS, 3), np.uint8)
    rgb[:, : COLUMNS // 2] = (200, 40, 90)
    ybr = pydicom.pixels.convert_color_space(rgb, "RGB", "YBR_FULL")
    frame = decode(kit.dicom(ybr, PhotometricInterpretation="YBR_FULL"), policy(channels=3), LIMITS).frames[0]
    assert np.abs(frame.pixels / 257 - rgb.transpose(2, 0, 1)).max() <= 1.5


def test_palette_colour_is_looked_up() -> None:
    indices = kit.ramp(levels=3, dtype="u1")
    palette = {"Red": [0, 65535, 257], "Green": [1000, 2000, 3000], "Blue": [0, 0, 65535]}
    ds = kit.dataset(indices, PhotometricInterpretation="PALETTE COLOR")
    for name, entries in palette.items():
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [3, 0, 16])
        setattr(ds, f"{name}PaletteColorLookupTableData", np.array(entries, "<u2").tobytes())
    frame = decode(kit.encode(ds), policy(channels=3), LIMITS).frames[0]
    for channel, entries in enumerate(palette.values()):
        assert np.array_equal(frame.pixels[channel], np.array(entries)[indices])


@pytest.mark.parametrize(
    ("sop_class", "pixels"),
    [
        pytest.param("1.2.840.10008.5.1.4.1.1.88.33", None, id="comprehensive SR"),
        pytest.param("1.2.840.10008.5.1.4.1.1.11.1", None, id="greyscale presentation state"),
        pytest.param("1.2.840.10008.5.1.4.1.1.88.59", None, id="key object selection"),
        pytest.param("1.2.840.10008.5.1.4.1.1.66.4", kit.ramp(2, "u1"), id="segmentation, which has pixel data"),
        pytest.param("1.2.840.10008.5.1.4.1.1.9.1.1", None, id="ECG"),
        pytest.param("1.2.840.10008.5.1.4.1.1.481.3", None, id="RT structure set"),
        pytest.param("1.2.840.10008.5.1.4.1.1.2", None, id="a CT whose pixels were taken out"),
    ],
)
def test_objects_without_an_image_are_skipped(sop_class: str, pixels: np.ndarray | None) -> None:
    assert refused(kit.dicom(pixels, SOPClassUID=sop_class)).code == ErrorCode.NOT_AN_IMAGE


def test_limits_hold_before_anything_is_decoded() -> None:
    data = kit.dicom(np.stack([kit.ramp()] * 4))
    assert refused(data, Limits(max_frames=3)).code == ErrorCode.TOO_MANY_FRAMES
    assert refused(data, Limits(max_pixels=ROWS * COLUMNS - 1)).code == ErrorCode.TOO_MANY_PIXELS
    assert refused(data, Limits(max_bytes=100)).code == ErrorCode.TOO_MANY_BYTES
    assert refused(kit.dicom(kit.ramp(), Rows=60000, Columns=60000)).code == ErrorCode.TOO_MANY_PIXELS


def test_a_code_stream_larger_than_its_header_is_not_allocated() -> None:
    data = kit.compressed(kit.dataset(kit.ramp() * 16, bits=12), "jpeg2000")
    start = data.index(b"\xff\x4f\xff\x51") + 8
    huge = data[:start] + (60000).to_bytes(4, "big") * 2 + data[start + 8 :]
    assert refused(huge).code == ErrorCode.TOO_MANY_PIXELS
    other = data[:start] + COLUMNS.to_bytes(4, "big") * 2 + data[start + 8 :]
    assert refused(other).code == ErrorCode.CORRUPT


def test_a_deflated_bomb_is_not_inflated() -> None:
    ds = kit.dataset(np.zeros((2000, 2000), np.uint16))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data = kit.encode(ds)
    assert len(data) < 50_000
    assert refused(data, Limits(max_bytes=1_000_000)).code == ErrorCode.TOO_MANY_BYTES


def test_short_pixel_data_is_truncated_and_long_pixel_data_is_not() -> None:
    values = kit.ramp()
    body = values.tobytes()
    assert refused(kit.dicom(values, PixelData=body[:-2])).code == ErrorCode.TRUNCATED
    assert refused(kit.dicom(values, PixelData=b"")).code == ErrorCode.TRUNCATED
    assert np.array_equal(grey(kit.dicom(values, PixelData=body + b"\x07\x07")), grey(kit.dicom(values)))
    frames = np.stack([values] * 3)
    packed = kit.compressed(kit.dataset(frames, bits=16), "rle")
    ds = pydicom.dcmread(pydicom.filebase.DicomBytesIO(packed))
    ds.NumberOfFrames = 4
    assert refused(kit.encode(ds)).code == ErrorCode.TRUNCATED
    ds.NumberOfFrames = 2
    assert len(decode(kit.encode(ds), policy(), LIMITS).frames) == 2


def test_a_file_cut_before_its_pixels_is_truncated_not_skipped() -> None:
    data = kit.dicom(kit.ramp())
    pixels = data.index(b"\xe0\x7f\x10\x00")
    codes = {end: refused(data[:end]).code for end in range(pixels - 39, pixels + 12)}
    # Cut exactly between two of the elements of ten bytes before the pixels, nothing shows it.
    between = set(range(pixels - 30, pixels + 1, 10))
    assert {end for end, code in codes.items() if code == ErrorCode.NOT_AN_IMAGE} == between
    assert {codes[end] for end in set(codes) - between} == {ErrorCode.TRUNCATED}


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100", "1.2.3.4.5.6"], ids=["MPEG2", "unknown"])
def test_a_syntax_without_a_decoder_is_named(syntax: str) -> None:
    data = kit.compressed(kit.dataset(kit.ramp()), "rle")
    ds = pydicom.dcmread(pydicom.filebase.DicomBytesIO(data))
    ds.file_meta.TransferSyntaxUID = syntax
    error = refused(kit.encode(ds, enforce_file_format=False, implicit_vr=False, little_endian=True))
    assert error.code == ErrorCode.UNSUPPORTED_SYNTAX
    assert syntax in error.detail
    assert not decodable(syntax)
    assert decodable(kit.SYNTAXES["rle"])


@pytest.mark.parametrize(
    "attributes", [{"Rows": 0}, {"SamplesPerPixel": 4}, {"SamplesPerPixel": 2}, {"PhotometricInterpretation": "HSV"}]
)
def test_images_that_no_detector_can_take(attributes: dict[str, Any]) -> None:
    assert refused(kit.dicom(kit.ramp(), **attributes)).code == ErrorCode.UNSUPPORTED_IMAGE


def test_a_constant_frame_is_decoded_and_marked() -> None:
    frames = np.stack([np.full((ROWS, COLUMNS), 7, np.uint16), kit.ramp()])
    for window in ("dicom", "percentile"):
        decoded = decode(kit.dicom(frames), policy(window), LIMITS)
        assert [frame.constant for frame in decoded.frames] == [True, False]
