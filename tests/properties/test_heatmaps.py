"""Any heatmap on the global scale comes back from its PNG, and any PNG from its shard."""

from __future__ import annotations

import io
import tarfile

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ad_jobs.images.geometry import Geometry
from ad_jobs.results.heatmaps import decode_png, encode_png, pack, parse_reference

SIDES = st.integers(1, 40)
MAPS = hnp.arrays(np.float32, st.tuples(SIDES, SIDES), elements=st.floats(0.0, 1.0, width=32, allow_subnormal=False))
GEOMETRIES = st.builds(Geometry, *[st.integers(0, 10_000)] * len(Geometry._fields))


@given(MAPS, GEOMETRIES)
def test_round_trip_of_a_heatmap(values: np.ndarray, geometry: Geometry) -> None:
    data = encode_png(values, geometry)
    back, read, _ = decode_png(data)
    assert read == geometry
    assert back.shape == values.shape
    assert back.dtype == np.float32
    # Half a step of 65,535, and the rounding of float32.
    np.testing.assert_allclose(back, values, rtol=0, atol=0.5 / 65535 + 1e-7)
    assert encode_png(values, geometry) == data
    # What was read is on the grid of the PNG: a second trip changes nothing.
    assert encode_png(back, geometry) == data


@given(hnp.arrays(np.uint16, st.tuples(SIDES, SIDES)))
def test_every_16_bit_value_is_kept_exactly(values: np.ndarray) -> None:
    geometry = Geometry(1, 1, *values.shape, 0, 0, *values.shape)
    back, _, _ = decode_png(encode_png((values / 65535).astype(np.float32), geometry))
    np.testing.assert_array_equal(np.rint(back * 65535), values)


NAMES = st.text("abcdefghijklmnop0123456789-_.", min_size=1, max_size=80).filter(lambda n: n.strip("."))


@given(st.dictionaries(NAMES, st.binary(min_size=1, max_size=1500), min_size=1, max_size=8))
def test_every_member_of_a_shard_is_found(contents: dict[str, bytes]) -> None:
    shard = pack(contents.items())
    for name, data in contents.items():
        place = parse_reference(shard.reference(name))
        assert shard.data[place.offset : place.offset + place.length] == data
    with tarfile.open(fileobj=io.BytesIO(shard.data)) as tar:
        assert {info.name: tar.extractfile(info).read() for info in tar} == contents
