"""Every kind of pixels in every form that it exists in: the wanted picture and remark, or a refusal with a name."""

from __future__ import annotations

import dicomkit as kit
import numpy as np
import pytest
from pixel_kinds import CASES, IDS, Kind

from ad_jobs.errors import ErrorCode
from ad_jobs.images.decode import decode


@pytest.mark.parametrize(("kind", "form"), CASES, ids=IDS)
def test_a_kind_is_shown_as_wanted_or_refused_by_name(kind: Kind, form: str) -> None:
    data = kind.build(form)
    if isinstance(kind.want, str):
        error = kit.refused(data)
        assert kind.want in error.detail
        assert error.code == ErrorCode.CORRUPT
        return
    decoded = decode(data, kit.policy(kind.window, channels=3), kit.LIMITS)
    pixels = decoded.frames[kind.frame].pixels / 65535
    shown = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    # float32 on the way.
    assert np.abs(shown - kind.want).max() <= kit.HALF_STEP + 1e-6
    # In implicit VR nothing contradicts itself by a value representation.
    by_representation = kind.remark in ("lut_descriptor_assumed", "pixel_padding_assumed")
    wanted = () if kind.remark is None or (by_representation and form == "implicit") else (kind.remark,)
    assert decoded.remarks == wanted
