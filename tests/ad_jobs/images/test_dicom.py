"""DICOM in, numbers out: the stages of the greyscale transformation, colour, frames, what is no image."""

from __future__ import annotations

import warnings
from typing import Any

import dicomkit as kit
import numpy as np
import pydicom
import pytest
from dicomkit import COLUMNS, ROWS
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.decode import Decoded, decode, read_header
from ad_jobs.images.dicom import decodable
from ad_jobs.images.policy import Limits, PixelPolicy, Window
from ad_jobs.schema import HEADER, MANIFEST, MANIFEST_HEADERS

LIMITS = Limits()
# Stored frames count in steps of 1/65535: half a step is what rounding may take.
HALF_STEP = 0.5 / 65535 + 1e-9


def policy(window: Window = "dicom", channels: int = 1, **more: Any) -> PixelPolicy:
    return PixelPolicy.model_validate(
        {"channels": channels, "height_px": ROWS, "width_px": COLUMNS, "window": window, **more}
    )


def grey(data: bytes, window: Window = "dicom", frame: int = 0) -> np.ndarray:
    """A frame's values in [0, 1] at its own size."""
    return decode(data, policy(window), LIMITS).frames[frame].pixels[0] / 65535


def refused(data: bytes, limits: Limits = LIMITS) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, policy(), limits)
    return caught.value


def test_every_level_of_a_16_bit_ramp_reaches_the_frame() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = decode(kit.dicom(levels), PixelPolicy(channels=1, height_px=256, width_px=256), LIMITS)
    assert np.array_equal(decoded.frames[0].pixels[0], levels)


def test_full_range_is_that_of_the_stored_bits() -> None:
    values = kit.ramp() * 17
    assert np.allclose(grey(kit.dicom(values, bits=12)), values / 4095, atol=HALF_STEP)


def test_signed_values_span_from_the_lowest_negative() -> None:
    values = kit.ramp(dtype="<i2") * 8 - 1024
    expected = (values + 2048.0) / 4095
    assert np.allclose(grey(kit.dicom(values, bits=12)), expected, atol=HALF_STEP)


def test_rescale_moves_values_into_the_units_of_a_fixed_window() -> None:
    values = kit.ramp()
    data = kit.dicom(values, RescaleSlope="0.5", RescaleIntercept="-100")
    expected = np.clip((values * 0.5 - 100 + 80) / 60, 0, 1)
    assert np.allclose(grey(data, (-80.0, -20.0)), expected, atol=HALF_STEP)


def test_negative_slope_turns_the_full_range_around() -> None:
    values = kit.ramp()
    data = kit.dicom(values.astype(np.uint8), RescaleSlope="-2", RescaleIntercept="10")
    assert np.allclose(grey(data), 1 - values / 255, atol=HALF_STEP)


def test_linear_window_follows_the_standards_pseudo_code() -> None:
    values, center, width = kit.ramp(), 100.0, 50.0
    data = kit.dicom(values, WindowCenter=str(center), WindowWidth=str(width))
    expected = np.empty(values.shape)
    for position, x in np.ndenumerate(values):
        if x <= center - 0.5 - (width - 1) / 2:
            expected[position] = 0
        elif x > center - 0.5 + (width - 1) / 2:
            expected[position] = 1
        else:
            expected[position] = (x - (center - 0.5)) / (width - 1) + 0.5
    assert np.allclose(grey(data), expected, atol=HALF_STEP)


def test_linear_exact_and_sigmoid_differ_from_linear_as_the_standard_says() -> None:
    values = kit.ramp()
    window = {"WindowCenter": "100", "WindowWidth": "50"}
    exact = grey(kit.dicom(values, VOILUTFunction="LINEAR_EXACT", **window))
    assert np.allclose(exact, np.clip((values - 100.0) / 50 + 0.5, 0, 1), atol=HALF_STEP)
    sigmoid = grey(kit.dicom(values, VOILUTFunction="SIGMOID", **window))
    assert np.allclose(sigmoid, 1 / (1 + np.exp(-4 * (values - 100.0) / 50)), atol=HALF_STEP)


def test_the_first_of_several_windows_counts() -> None:
    values = kit.ramp()
    many = kit.dicom(values, WindowCenter=["100", "7"], WindowWidth=["50", "3"])
    one = kit.dicom(values, WindowCenter="100", WindowWidth="50")
    assert np.array_equal(grey(many), grey(one))


@pytest.mark.parametrize("width", ["0", "-5", "0.5"])
def test_a_window_without_width_is_no_window(width: str) -> None:
    values = kit.ramp()
    data = kit.dicom(values, bits=12, WindowCenter="0", WindowWidth=width)
    assert np.array_equal(grey(data), grey(kit.dicom(values, bits=12)))


def test_width_one_is_a_threshold() -> None:
    values = kit.ramp()
    assert np.array_equal(grey(kit.dicom(values, WindowCenter="100", WindowWidth="1")), values >= 100)


def test_voi_lut_is_preferred_to_the_window() -> None:
    values = kit.ramp(levels=8)
    entries = [0, 10, 1000, 1023, 500]  # first entry belongs to value 2; beyond the ends the ends count
    data = kit.dicom(values, VOILUTSequence=kit.lut(2, entries, 10), WindowCenter="3", WindowWidth="2")
    expected = np.array(entries)[np.clip(values.astype(int) - 2, 0, 4)] / 1023
    assert np.allclose(grey(data), expected, atol=HALF_STEP)


def test_modality_lut_comes_before_the_window() -> None:
    values = kit.ramp(levels=4)
    data = kit.dicom(
        values, ModalityLUTSequence=kit.lut(0, [100, 90, 50, 0], 8), WindowCenter="50.5", WindowWidth="101"
    )
    assert np.allclose(grey(data), np.array([100, 90, 50, 0])[values] / 100, atol=HALF_STEP)


@pytest.mark.parametrize("window", ["dicom", "percentile", (-300.0, 2000.0)])
@pytest.mark.parametrize("voi", [{}, {"WindowCenter": "1000", "WindowWidth": "4000"}])
def test_monochrome1_equals_its_monochrome2_twin(window: Window, voi: dict[str, str]) -> None:
    rng = np.random.default_rng(4)
    values = rng.integers(0, 4096, (ROWS, COLUMNS), dtype=np.uint16)
    # The same bytes called MONOCHROME1 are the negative; 4095 - v under the mirrored window is the twin.
    plain = grey(kit.dicom(values, bits=12, RescaleSlope="1.25", RescaleIntercept="-1024", **voi), window)
    inverted = kit.dicom(
        values, bits=12, RescaleSlope="1.25", RescaleIntercept="-1024", PhotometricInterpretation="MONOCHROME1", **voi
    )
    assert np.abs(grey(inverted, window) - (1 - plain)).max() <= 1 / 65535 + 1e-9  # ties round to even
    mirrored = {"WindowCenter": str(4095 * 1.25 - 2048 - 1000 + 1), "WindowWidth": "4000"} if voi else {}
    if window == "dicom":
        twin = kit.dicom(
            4095 - values,
            bits=12,
            RescaleSlope="1.25",
            RescaleIntercept="-1024",
            PhotometricInterpretation="MONOCHROME1",
            **mirrored,
        )
        ours = decode(twin, policy(window), LIMITS).frames[0].pixels
        assert np.array_equal(ours, np.rint(plain * 65535).astype(np.uint16)[None])


def test_percentile_window_ignores_padding_and_outliers() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(1000, 1100, (100, 100)).astype(np.int16)
    values[:30] = -2000  # padding
    values[99, 99] = 30000  # a marker
    data = kit.dicom(values, PixelPaddingValue=-2000)
    shown = decode(data, PixelPolicy(channels=1, height_px=100, width_px=100, window="percentile"), LIMITS)
    inside = shown.frames[0].pixels[0, 30:] / 65535
    assert 0.45 < np.median(inside) < 0.55
    assert inside.max() == 1.0
    assert (shown.frames[0].pixels[0, :30] == 0).all()


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


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("little", [True, False])
def test_files_without_preamble_and_meta_are_read(implicit: bool, little: bool) -> None:
    if implicit and not little:
        pytest.skip("there is no implicit big endian")
    values = kit.ramp() * 16
    ds = kit.dataset(values if little else values.astype(">u2").view("<u2"), bits=12)
    del ds.file_meta
    stream = pydicom.filebase.DicomBytesIO()
    pydicom.dcmwrite(stream, ds, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    data = stream.getvalue()
    assert data[128:132] != b"DICM"
    assert np.array_equal(grey(data), grey(kit.dicom(values, bits=12)))


def test_frames_come_one_by_one_with_their_own_rescale_and_window() -> None:
    values = np.stack([kit.ramp() + 10 * frame for frame in range(3)])
    groups = [
        kit.item(
            PixelValueTransformationSequence=Sequence(
                [kit.item(RescaleSlope=str(frame + 1), RescaleIntercept=str(-frame), RescaleType="US")]
            ),
            FrameVOILUTSequence=Sequence([kit.item(WindowCenter=str(100 * (frame + 1)), WindowWidth="300")]),
        )
        for frame in range(3)
    ]
    data = kit.dicom(values, PerFrameFunctionalGroupsSequence=Sequence(groups))
    decoded = decode(data, policy(), LIMITS)
    assert [frame.index for frame in decoded.frames] == [0, 1, 2]
    for frame in range(3):
        modality = values[frame] * (frame + 1.0) - frame
        expected = np.clip((modality - (100 * (frame + 1) - 0.5)) / 299 + 0.5, 0, 1)
        assert np.allclose(decoded.frames[frame].pixels[0] / 65535, expected, atol=HALF_STEP)


def test_shared_functional_groups_hold_for_frames_without_their_own() -> None:
    values = np.stack([kit.ramp()] * 2)
    shared = kit.item(PixelValueTransformationSequence=Sequence([kit.item(RescaleSlope="1", RescaleIntercept="-50")]))
    own = kit.item(PixelValueTransformationSequence=Sequence([kit.item(RescaleSlope="1", RescaleIntercept="0")]))
    data = kit.dicom(
        values,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence([kit.item(), own]),
    )
    assert np.allclose(grey(data, (0.0, 300.0), 0), np.clip((values[0] - 50.0) / 300, 0, 1), atol=HALF_STEP)
    assert np.allclose(grey(data, (0.0, 300.0), 1), values[1] / 300, atol=HALF_STEP)


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


def test_float_pixels_and_non_finite_ones() -> None:
    values = np.linspace(0, 1, ROWS * COLUMNS, dtype="<f4").reshape(ROWS, COLUMNS)
    parts = {"PixelData": None, "BitsStored": None, "HighBit": None, "PixelRepresentation": None}
    data = kit.dicom(kit.ramp(), BitsAllocated=32, **parts, FloatPixelData=values.tobytes())
    assert np.allclose(grey(data), values, atol=HALF_STEP)
    values[3, 7] = np.nan
    bad = kit.dicom(kit.ramp(), BitsAllocated=32, **parts, FloatPixelData=values.tobytes())
    error = refused(bad)
    assert error.code == ErrorCode.NON_FINITE_PIXELS
    assert "1 of 240" in error.detail


def test_rescale_to_infinity_is_non_finite() -> None:
    assert refused(kit.dicom(kit.ramp(), RescaleSlope="1e308", RescaleIntercept="0")).code == "non_finite_pixels"


@pytest.mark.parametrize(
    ("sop_class", "pixels"),
    [
        ("1.2.840.10008.5.1.4.1.1.88.33", None),  # comprehensive SR
        ("1.2.840.10008.5.1.4.1.1.11.1", None),  # greyscale presentation state
        ("1.2.840.10008.5.1.4.1.1.88.59", None),  # key object selection
        ("1.2.840.10008.5.1.4.1.1.66.4", kit.ramp(2, "u1")),  # segmentation, which has pixel data
        ("1.2.840.10008.5.1.4.1.1.9.1.1", None),  # ECG
        ("1.2.840.10008.5.1.4.1.1.481.3", None),  # RT structure set
        ("1.2.840.10008.5.1.4.1.1.2", None),  # a CT whose pixels were taken out
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


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100", "1.2.3.4.5.6"])  # MPEG2, and one that nobody knows
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


def test_header_is_an_allow_list() -> None:
    decoded: Decoded = decode(kit.dicom(kit.ramp(), bits=12), policy(), LIMITS)
    assert list(decoded.header) == HEADER.names
    assert decoded.header == {
        "study_uid": "1.2.826.0.1.3680043.8.498.2",
        "series_uid": "1.2.826.0.1.3680043.8.498.3",
        "sop_uid": "1.2.826.0.1.3680043.8.498.1",
        "modality": "CT",
        "manufacturer": "Maker",
        "study_month": "2023-05",
        "rows": ROWS,
        "columns": COLUMNS,
        "bits": 12,
        "photometric": "MONOCHROME2",
        "transfer_syntax": "1.2.840.10008.1.2.1",
    }


@pytest.mark.parametrize(("date", "month"), [("1999.12.31", "1999-12"), ("", None), ("20231399", None), ("Doe", None)])
def test_a_study_date_becomes_a_month_or_nothing(date: str, month: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = kit.dicom(kit.ramp(), StudyDate=date)
    assert decode(data, policy(), LIMITS).header["study_month"] == month


def test_no_error_repeats_header_text(capfd: pytest.CaptureFixture[str]) -> None:
    spoiled: list[dict[str, Any]] = [
        {"SOPClassUID": "Doe^Jane"},
        {"PhotometricInterpretation": "DOE JANE"},
        {"WindowCenter": "1", "WindowWidth": "2", "RescaleSlope": "3"},
        {"BitsStored": 77},
    ]
    for attributes in spoiled:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = kit.dicom(kit.ramp() if "SOPClassUID" not in attributes else None, **attributes)
        data = data.replace(b"RescaleSlope", b"").replace(b"DS\x02\x003 ", b"DS\x02\x00JD")
        text = str(refused(data)).lower()
        assert "doe" not in text
        assert "jane" not in text
        assert "jd" not in text
    streams = capfd.readouterr()
    assert streams.out == streams.err == ""


def test_read_header_fills_the_manifests_columns() -> None:
    data = kit.dicom(
        np.stack([kit.ramp()] * 3),
        bits=12,
        BodyPartExamined="CHEST",
        ManufacturerModelName="M1",
        BurnedInAnnotation="NO",
    )
    found = read_header(data)
    assert list(found) == [name for name in MANIFEST_HEADERS.names if name not in MANIFEST.names]
    assert (found["frames"], found["bits"], found["body_part"], found["burned_in"]) == (3, 12, "CHEST", "NO")
    assert (found["rows"], found["columns"], found["sop_class"]) == (ROWS, COLUMNS, "1.2.840.10008.5.1.4.1.1.2")
    assert found["header_error"] is None
    pixels = data.index(b"\xe0\x7f\x10\x00")
    assert read_header(data[: pixels + 12], len(data)) == found
    # Every shorter head either suffices or says that it does not.
    for end in range(256, pixels, 7):
        part = read_header(data[:end], len(data))
        assert part == found or part["header_error"] == "truncated", end


def test_read_header_of_bad_bytes_names_the_code() -> None:
    assert read_header(b"")["header_error"] == "empty"
    assert read_header(b"no image at all" * 50)["header_error"] == "unknown_format"
    assert read_header(kit.dicom(None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33"))["header_error"] is None
