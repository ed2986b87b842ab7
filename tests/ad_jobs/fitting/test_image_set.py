"""Images of a source by position: the same whether they stay decoded or are decoded when they are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import containerkit
import imagecodecs
import numpy as np
import pytest
import scankit as kit

from ad_jobs.archive.sources import read_source
from ad_jobs.errors import JobError
from ad_jobs.fitting.image_set import ImageSet, Reader, decode_all
from ad_jobs.images.policy import Limits, PixelPolicy
from cluster.session import Session, session

pytestmark = pytest.mark.ray

POLICY = PixelPolicy(channels=3, height_px=16, width_px=24)
CHUNK = 4
BAD = {name: data for name, (data, _) in kit.bad_objects().items()}
# One of them of several frames.
OBJECTS = kit.good_objects(11) | BAD
# Grey.
IMAGE_BYTES = 16 * 24 * 2


@pytest.fixture(scope="module")
def connected() -> Iterator[Session]:
    with session(num_cpus=2) as found:
        yield found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return kit.write_archive(tmp_path_factory.mktemp("archive"), OBJECTS)


def decoded(source: str, keep_bytes: int) -> ImageSet:
    return decode_all(
        read_source(source), POLICY, Limits(), "normal", cpus=2, keep_bytes=keep_bytes, chunk_objects=CHUNK
    )


@pytest.mark.usefixtures("connected")
def test_reading_does_not_hang_on_what_stays_in_memory(source: str):
    sets = {keep: decoded(source, keep) for keep in (1 << 20, 14 * IMAGE_BYTES, 0)}
    kept, partly, fresh = sets.values()
    assert None not in kept.chunks
    assert 0 < partly.chunks.count(None) < len(partly.chunks)
    assert partly.kept_bytes <= 14 * IMAGE_BYTES
    assert fresh.kept_bytes == 0
    order = np.random.default_rng(0).permutation(len(kept)).tolist()
    expected: list[np.ndarray] = []
    for images in sets.values():
        assert len(images) == len(kept) == 10 + kit.FRAMES
        assert images.failed == kept.failed
        assert images.group == kept.group
        assert images.series == kept.series
        assert images.header == kept.header
        assert len(images.series) == len(images.header) == len(kept)
        assert {header["transfer_syntax"] for header in images.header} >= {"png"}
        assert sum(images.failed.values()) == len(kit.bad_objects())
        with closing(Reader(images, read_ahead=3)) as reader:
            for positions in (order, order[:2], []):
                found = list(reader.read(positions))
                expected = expected or found
                assert len(found) == len(positions)
                for ours, theirs in zip(found, expected, strict=False):
                    assert ours.dtype == np.uint16
                    assert np.array_equal(ours, theirs)
    assert len({pixels.tobytes() for pixels in expected}) == len(expected)


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
def test_one_image_in_colour_and_the_set_is_not_grey(tmp_path: Path, keep_bytes: int):
    files = {f"{n}.png": kit.png(n) for n in range(2 * CHUNK)} | {"bad.png": b""}
    assert decoded(kit.write_archive(tmp_path / "grey", files), keep_bytes).grey
    colour = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    files["3.png"] = imagecodecs.png_encode(colour)
    assert not decoded(kit.write_archive(tmp_path / "colour", files), keep_bytes).grey


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("change", ["other bytes", "gone"])
def test_an_image_that_changed_meanwhile_is_an_error(tmp_path: Path, change: str):
    source = kit.write_archive(tmp_path, {f"good/{n}.png": kit.png(n) for n in range(3)})
    images = decoded(source, 0)
    path = tmp_path / "good" / "1.png"
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(kit.png(7))
    with (
        closing(Reader(images, read_ahead=3)) as reader,
        pytest.raises(JobError, match=r"1\.png, which changed or is gone"),
    ):
        list(reader.read([0, 1, 2]))


@pytest.mark.usefixtures("connected")
def test_a_source_without_an_image_is_refused(tmp_path: Path):
    source = kit.write_archive(tmp_path, {"bad/empty.png": b""})
    with pytest.raises(JobError, match=r"None of 1 normal image could be decoded \(\{'empty': 1\}\)"):
        decoded(source, 1 << 20)


@pytest.mark.usefixtures("connected")
def test_pictures_of_a_container_without_folders_belong_together(tmp_path: Path) -> None:
    pictures = {f"{name}.png": kit.png(number) for number, name in enumerate(("1", "2", "folder/3"))}
    images = {**pictures, "4.dcm": kit.dicom(4)}
    objects = {"x.zip": containerkit.zipped(images), "y.tgz": containerkit.gzipped(containerkit.tarred(images))}
    root = kit.write_archive(tmp_path / "archive", objects | {"z.png.gz": containerkit.gzipped(kit.png(5))})
    found = decoded(root, 1 << 20)
    assert found.failed == {}
    for name in ("x.zip", "y.tgz"):
        own = f"{root}/{name}!/folder/3.png"
        by_name = [found.group[p] for p, place in enumerate(found.places) if found.sources[place.object].uri == own]
        assert by_name == [own]
        assert found.group.count(f"{root}/{name}") == 2
    studies = {group for group in found.group if not group.startswith(root)}
    assert len(studies) == 1
    assert found.group[-1] == f"{root}/z.png.gz!/z.png"
