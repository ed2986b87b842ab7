"""Small inputs made for this purpose, which other decoders show: each is right, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.decode import decode
from ad_jobs.images.policy import Limits, PixelPolicy

CASES = Path(__file__).parents[4] / "shared" / "cases" / "pixels"
# The mean of the first frame, and how many frames there are.
WANTED = {
    "bot_all_zero.dcm": (0.281, 4),
    # A quarter of its pixels, one of four levels, is transparent.
    "g2_trns.png": (0.417, 1),
    "imagej_truncated.tif": (0.5, 5),
    "j2k_ovlbits_hdr12.dcm": (0.5, 1),
    "jpll_p0_flip.dcm": (0.404, 1),
    "ljpeg_bits6.dcm": (0.5, 1),
    "pad_us_wrongvr.dcm": (0.125, 1),
    "slope_zero.dcm": (0.5, 1),
    "voilut_be_ow.dcm": (0.5, 1),
    "voilut_empty_with_window.dcm": (0.756, 1),
    "voilut_first_us_pr0.dcm": (0.333, 1),
    "voilut_short_data.dcm": (0.5, 1),
    "win_text.dcm": (0.5, 1),
    "xa_modlut_LOG.dcm": (0.5, 1),
    "ybr_partial_422.dcm": (0.432, 1),
}

pytestmark = [pytest.mark.shared, pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not there")]


@pytest.mark.parametrize("name", WANTED)
def test_a_case_is_shown_as_it_should_be(name: str) -> None:
    policy = PixelPolicy(
        channels=3, height_px=64, width_px=64, window="percentile" if name.startswith("pad") else "dicom"
    )
    frames = decode((CASES / name).read_bytes(), policy, Limits()).frames
    mean, count = WANTED[name]
    assert len(frames) == count
    assert frames[0].pixels.mean() / 65535 == pytest.approx(mean, abs=0.0015)


def test_encapsulated_pixels_in_a_native_transfer_syntax_are_refused() -> None:
    data = (CASES / "st_native_ts_jpll_noise_expl.dcm").read_bytes()
    with pytest.raises(ImageError, match="TransferSyntaxUID") as caught:
        decode(data, PixelPolicy(channels=1, height_px=64, width_px=64), Limits())
    assert caught.value.code == ErrorCode.CORRUPT
