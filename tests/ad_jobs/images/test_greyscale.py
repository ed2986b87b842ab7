"""The greyscale transformation of a frame, stage by stage: stored, modality, VOI, MONOCHROME1."""

from __future__ import annotations

import dicomkit as kit
import numpy as np
import pytest
from dicomkit import COLUMNS, HALF_STEP, LIMITS, ROWS, grey, policy, refused
from pydicom.sequence import Sequence

from ad_jobs.errors import ErrorCode
from ad_jobs.images.decode import decode
from ad_jobs.images.policy import PixelPolicy, Window


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
    # First entry belongs to value 2; beyond the ends the ends count.
    entries = [0, 10, 1000, 1023, 500]
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
    # Ties round to even.
    assert np.abs(grey(inverted, window) - (1 - plain)).max() <= 1 / 65535 + 1e-9
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
    # Padding.
    values[:30] = -2000
    # A marker.
    values[99, 99] = 30000
    data = kit.dicom(values, PixelPaddingValue=-2000)
    shown = decode(data, PixelPolicy(channels=1, height_px=100, width_px=100, window="percentile"), LIMITS)
    inside = shown.frames[0].pixels[0, 30:] / 65535
    assert 0.45 < np.median(inside) < 0.55
    assert inside.max() == 1.0
    assert (shown.frames[0].pixels[0, :30] == 0).all()


@pytest.mark.parametrize(("bits", "written"), [(8, 0x00F6), (8, 0xFFF6), (6, 0x0036), (6, 0xFFF6)])
def test_padding_of_few_bits_is_told_however_its_sign_is_written(bits: int, written: int) -> None:
    values = (kit.ramp(20) + 5).astype("i1")
    values[:4] = -10
    ds = kit.dataset(values, bits=bits, PixelPaddingValue=written)
    ds["PixelPaddingValue"].VR = "US"
    kept = values[4:].astype(float)
    low, high = np.percentile(kept, (0.5, 99.5))
    shown = grey(kit.encode(ds), "percentile")
    assert np.allclose(shown, np.clip((values - low) / (high - low), 0, 1), atol=HALF_STEP + 1e-6)


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


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shape", ["IDENTITY", "INVERSE"])
def test_a_shape_that_contradicts_the_photometric_interpretation_is_remarked(photometric: str, shape: str) -> None:
    data = kit.dicom(kit.ramp(), PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    assert np.array_equal(grey(data), grey(kit.dicom(kit.ramp(), PhotometricInterpretation=photometric)))
    contradict = (photometric == "MONOCHROME1") != (shape == "INVERSE")
    assert decode(data, policy(), LIMITS).remarks == (("presentation_lut_shape_ignored",) if contradict else ())


def test_rescale_to_infinity_is_non_finite() -> None:
    assert refused(kit.dicom(kit.ramp(), RescaleSlope="1e308", RescaleIntercept="0")).code == "non_finite_pixels"
