"""Heatmap PNGs and shards, against Pillow and tarfile as independent readers."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from runkit import GEOMETRY

from ad_jobs.errors import JobError, UsageError
from ad_jobs.results.heatmaps import decode_png, encode_png, keep, member_name, pack, parse_reference, shard_name

SHAPE = (GEOMETRY.height_px, GEOMETRY.width_px)


def ramp() -> np.ndarray:
    return np.linspace(0.0, 1.0, SHAPE[0] * SHAPE[1]).reshape(SHAPE)


def test_pillow_reads_the_png_as_16_bit_grey() -> None:
    with Image.open(io.BytesIO(encode_png(ramp(), GEOMETRY))) as image:
        assert (image.mode, image.size, image.format) == ("I;16", SHAPE[::-1], "PNG")
        assert "geometry" in image.info
        np.testing.assert_array_equal(np.asarray(image), np.rint(ramp() * 65535).astype(np.uint16))


@pytest.mark.parametrize("bad", [-1e-6, 1.001, np.nan, np.inf])
def test_a_heatmap_off_the_scale_is_refused(bad: float) -> None:
    values = ramp()
    values[3, 4] = bad
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        encode_png(values, GEOMETRY)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 5)])
def test_a_heatmap_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \[H, W\]"):
        encode_png(np.zeros(shape), GEOMETRY)


def _eight_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "spoilt",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        encode_png(ramp(), GEOMETRY)[:-200],
        encode_png(ramp(), GEOMETRY).replace(b"geometry\0{", b"geometry\0["),
        _eight_bits(),
    ],
    ids=["empty", "signature", "cut off", "text changed", "8 bits"],
)
def test_damaged_bytes_are_an_error(spoilt: bytes) -> None:
    with pytest.raises(JobError, match="cannot be read"):
        decode_png(spoilt)


def test_one_changed_byte_of_the_pixels_is_noticed() -> None:
    data = bytearray(encode_png(ramp(), GEOMETRY))
    data[data.index(b"IDAT") + 40] ^= 1
    with pytest.raises(JobError, match="cannot be read"):
        decode_png(bytes(data))


def members(n: int = 4) -> list[tuple[str, bytes]]:
    return [(member_name(i, 0), encode_png(ramp() ** (i + 1), GEOMETRY)) for i in range(n)]


def test_tarfile_reads_a_shard() -> None:
    shard = pack(members())
    with tarfile.open(fileobj=io.BytesIO(shard.data)) as tar:
        infos = tar.getmembers()
        assert [info.name for info in infos] == [name for name, _ in members()]
        for info, (_, data) in zip(infos, members(), strict=True):
            assert tar.extractfile(info).read() == data
            assert (info.mtime, info.uid, info.gid, info.uname) == (0, 0, 0, "")


def test_a_reference_leads_to_the_png_itself() -> None:
    shard = pack(members())
    for name, data in members():
        reference = parse_reference(shard.reference(name))
        assert reference.shard == shard.name
        assert shard.data[reference.offset : reference.offset + reference.length] == data


def test_a_retried_task_writes_the_same_shard_in_any_order() -> None:
    again = pack(reversed(members()))
    assert again == pack(members())


def test_shards_of_other_objects_frames_or_models_have_other_names() -> None:
    held = [
        [member_name(1, 0)],
        [member_name(2, 0)],
        [member_name(1, 1)],
        [member_name(1, 0, "0123456789ab")],
        [member_name(1, 0), member_name(2, 0)],
    ]
    names = {shard_name(names) for names in held}
    assert len(names) == len(held)


def test_an_empty_shard_and_equal_names_are_refused() -> None:
    with pytest.raises(ValueError, match="0 members"):
        pack([])
    with pytest.raises(ValueError, match="2 members, 1 names"):
        pack([("a.png", b"1"), ("a.png", b"2")])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "heatmaps/part-0.tar",
        "heatmaps/part-0.tar#12",
        "heatmaps/part-0.tar#a,b",
        "heatmaps/p.tar#-1,2",
        "heatmaps/p.tar#1,0",
        "heatmaps/p.tar#1,2,3",
        "elsewhere/p.tar#1,2",
        "heatmaps/../../etc/x#1,2",
        "heatmaps/p.tar#²,3",
    ],
)
def test_a_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="offset,length"):
        parse_reference(text)


def test_flagged_heatmaps_and_a_percent_of_the_rest_are_kept() -> None:
    n = 20_000
    sample = [object_id for object_id in range(n) if keep("flagged", False, object_id, 0)]
    # 1 % give or take four deviations.
    assert 0.007 * n < len(sample) < 0.013 * n
    assert sample == [object_id for object_id in range(n) if keep("flagged", False, object_id, 0)]
    assert sample != [object_id for object_id in range(n) if keep("flagged", False, object_id, 1)]
    assert all(keep("flagged", True, object_id, 0) for object_id in range(100))
    assert all(keep("all", False, object_id, 0) for object_id in range(100))
    assert not any(keep("none", True, object_id, 0) for object_id in range(100))


def test_a_heatmap_is_drawn_with_its_half_at_the_anchor():
    unit = np.array([[0.0, 0.0625, 0.125, 0.25, 0.9]], np.float32)
    geometry = GEOMETRY._replace(height_px=1, width_px=5)
    stored = decode_png(encode_png(unit, geometry, 0.125))
    assert stored.anchor == 0.125
    np.testing.assert_allclose(stored.values, unit, atol=1e-5)
    np.testing.assert_allclose(stored.drawn().values, [[0.0, 0.25, 0.5, 1.0, 1.0]], atol=1e-4)
    # Drawn twice it is as it was.
    np.testing.assert_array_equal(stored.drawn().drawn().values, stored.drawn().values)


def test_a_heatmap_of_an_earlier_version_is_anchored_at_a_third():
    data = encode_png(ramp(), GEOMETRY, 0.125)
    chunk = data.index(b"tEXtanchor") - 4
    length = 12 + int.from_bytes(data[chunk : chunk + 4], "big")
    assert decode_png(data[:chunk] + data[chunk + length :]).anchor == pytest.approx(1 / 3)


@pytest.mark.parametrize("anchor", [0.0, 1.0, -1.0, float("nan")])
def test_an_anchor_beyond_the_scale_is_refused(anchor: float):
    with pytest.raises(JobError, match="cannot be read"):
        decode_png(encode_png(ramp(), GEOMETRY, anchor))
