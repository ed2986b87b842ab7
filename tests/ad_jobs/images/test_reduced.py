"""Frames decoded at a smaller size: the pixels that they had whole, but for what was lost, and whole where in doubt."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import dicomkit as kit
import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom.uid import (
    JPEG2000,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from ad_jobs.images import reduced_jpeg2000
from ad_jobs.images.decode import decode, decode_each
from ad_jobs.images.dicom import open_dicom
from ad_jobs.images.jpeg import open_jpeg
from ad_jobs.images.policy import PixelPolicy
from ad_jobs.images.reduction import factor

Array = npt.NDArray[Any]

# Never square, never a multiple of the factor: the last blocks are of fewer pixels.
ROWS, COLUMNS = 259, 390
WHOLE = PixelPolicy(channels=3, height_px=32, width_px=44)
REDUCED = WHOLE.model_copy(update={"decode": "reduced"})
FACTOR = 4
# Of full scale, on a smooth picture: a lossless one has lost what its low-pass takes off, a lossy one its own error.
LOSSLESS, LOSSY = 0.003, 0.006
# The reversible transformation rounds up, by half a step for each time that it halves: of 255 steps, that is seen.
EIGHT_BITS = 0.01
REMARK = ("decoded_whole",)

Y, X = np.mgrid[0:ROWS, 0:COLUMNS]
# Steep from side to side, so that a shift by half a reduced pixel is seen.
SMOOTH = 0.5 + 0.3 * np.sin(X / 40) + 0.15 * np.cos(Y / 25)


def stored(bits: int, low: int = 0) -> Array:
    kind = ("i" if low < 0 else "u") + ("1" if bits <= 8 else "2")
    return np.rint(SMOOTH * (2**bits - 1) + low).astype(kind)


def colour() -> Array:
    return np.stack([stored(8), stored(8)[::-1], 255 - stored(8)[:, ::-1]], axis=-1)


def j2k(pixels: Array, bits: int, level: float = 0, **options: Any) -> bytes:
    how = {"codecformat": "j2k", "reversible": level == 0, "bitspersample": bits, "mct": False, **options}
    return bytes(imagecodecs.jpeg2k_encode(pixels, level, **how))


def tiled(pixels: Array, height: int, width: int) -> bytes:
    """Eight bits, losslessly, in tiles of that size."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG2000", no_jp2=True, tile_size=(width, height))
    return stream.getvalue()


def file(codes: list[bytes], syntax: str, like: Array, bits: int | None = None, **attributes: Any) -> bytes:
    ds = kit.dataset(like, bits=bits, **attributes)
    kit.encapsulated(ds, codes)
    ds.file_meta.TransferSyntaxUID = syntax
    return kit.encode(ds)


def jpeg(pixels: Array, **options: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


def worst(data: bytes, frame: int = 0) -> float:
    """The largest difference that reducing makes, of full scale; everything but the pixels is alike."""
    whole, reduced = decode(data, WHOLE, kit.LIMITS), decode(data, REDUCED, kit.LIMITS)
    assert (reduced.header, reduced.remarks) == (whole.header, whole.remarks)
    assert [one._replace(pixels=None) for one in reduced.frames] == [one._replace(pixels=None) for one in whole.frames]
    return float(np.abs(reduced.frames[frame].pixels.astype(float) - whole.frames[frame].pixels).max() / 65535)


def is_reduced(data: bytes) -> bool:
    opened = (open_jpeg if data.startswith(b"\xff\xd8") else open_dicom)(data, kit.LIMITS)
    return all(shown.grid is not None for shown in opened.read(REDUCED))


GREY12 = stored(12)
KINDS: dict[str, tuple[Callable[[], bytes], float]] = {
    "J2K, 12 bits": (lambda: file([j2k(GREY12, 12)], JPEG2000Lossless, GREY12, 12), LOSSLESS),
    "J2K, 16 bits": (lambda: file([j2k(stored(16), 16)], JPEG2000Lossless, stored(16)), LOSSLESS),
    "J2K, 8 bits": (lambda: file([j2k(stored(8), 8)], JPEG2000Lossless, stored(8)), EIGHT_BITS),
    "J2K, signed": (
        lambda: file([j2k(stored(12, -2048), 12)], JPEG2000Lossless, stored(12, -2048), 12, RescaleIntercept=-1024),
        LOSSLESS,
    ),
    "J2K, lossy": (lambda: file([j2k(GREY12, 12, 70)], JPEG2000, GREY12, 12), LOSSY),
    "J2K, MONOCHROME1": (
        lambda: file([j2k(GREY12, 12)], JPEG2000Lossless, GREY12, 12, PhotometricInterpretation="MONOCHROME1"),
        LOSSLESS,
    ),
    "J2K, window": (
        lambda: file([j2k(GREY12, 12)], JPEG2000Lossless, GREY12, 12, WindowCenter=2000, WindowWidth=6000),
        LOSSLESS,
    ),
    "J2K, VOI LUT": (
        lambda: file(
            [j2k(GREY12, 12)],
            JPEG2000Lossless,
            GREY12,
            12,
            VOILUTSequence=kit.lut(0, [round(65535 * (n / 4095) ** 2) for n in range(4096)], 16),
        ),
        LOSSLESS,
    ),
    "J2K, tiles": (lambda: file([tiled(stored(8), 128, 96)], JPEG2000Lossless, stored(8)), EIGHT_BITS),
    "J2K, colour": (
        lambda: file([j2k(colour(), 8, mct=True)], JPEG2000Lossless, colour(), PhotometricInterpretation="YBR_RCT"),
        EIGHT_BITS,
    ),
    "J2K, frames": (
        lambda: file([j2k(GREY12, 12), j2k(4095 - GREY12, 12)], JPEG2000Lossless, np.stack([GREY12] * 2), 12),
        LOSSLESS,
    ),
    "HTJ2K": (lambda: file([bytes(imagecodecs.htj2k_encode(stored(16)))], HTJ2KLossless, stored(16)), LOSSLESS),
    "JPEG in DICOM": (lambda: file([jpeg(stored(8))], JPEGBaseline8Bit, stored(8)), LOSSY),
    "JPEG in DICOM, colour": (
        lambda: file([jpeg(colour())], JPEGBaseline8Bit, colour(), PhotometricInterpretation="YBR_FULL_422"),
        LOSSY,
    ),
    "JPEG": (lambda: jpeg(stored(8)), LOSSY),
    "JPEG, colour": (lambda: jpeg(colour()), LOSSY),
    "JPEG, progressive": (lambda: jpeg(stored(8), progressive=True), LOSSY),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_reduced_frame_is_the_whole_one_by_area(kind: str) -> None:
    made, tolerance = KINDS[kind]
    data = made()
    assert is_reduced(data)
    # Something was lost: else it would not have been reduced.
    assert 0 < worst(data) < tolerance


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_jpeg_that_is_turned_is_reduced_where_its_blocks_are_whole(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(stored(8)[:256, :384], exif=exif)
    assert is_reduced(data)
    assert 0 < worst(data) < LOSSY


def test_the_second_of_two_frames_is_its_own() -> None:
    data = KINDS["J2K, frames"][0]()
    assert worst(data, frame=1) < LOSSLESS
    first, second = decode(data, REDUCED, kit.LIMITS).frames
    assert np.abs(first.pixels.astype(float) + second.pixels - 65535).max() < 65535 * LOSSLESS
    (alone,) = decode(data, REDUCED, kit.LIMITS, only=1).frames
    assert np.array_equal(alone.pixels, second.pixels)


def test_rows_and_columns_are_those_of_the_whole_frame() -> None:
    padded = REDUCED.model_copy(update={"resize": "pad"})
    decoded = decode(KINDS["J2K, 12 bits"][0](), padded, kit.LIMITS)
    geometry = decoded.frames[0].geometry
    assert (geometry.rows, geometry.columns, geometry.height, geometry.width) == (ROWS, COLUMNS, 29, 44)
    assert (decoded.header["rows"], decoded.header["columns"], decoded.header["bits"]) == (ROWS, COLUMNS, 12)


# --- The samples themselves, by T.800 annex F


def low_pass(values: Array) -> Array:
    """The reversible 5/3 low-pass of each column, T.800 F.4.8.1: equations F-11 and F-10, mirrored at the ends."""
    rows = len(values)

    def at(n: int) -> Array:
        return values[n if n < rows else 2 * (rows - 1) - n]

    details = [at(2 * n + 1) - ((at(2 * n) + at(2 * n + 2)) >> 1) for n in range(rows // 2)]
    # Before the first lies its own mirror image, and so behind the last.
    around = [details[0], *details, details[-1]]
    return np.stack([at(2 * n) + ((around[n] + around[n + 1] + 2) >> 2) for n in range((rows + 1) // 2)])


@pytest.mark.parametrize(("bits", "low"), [(5, 0), (8, 0), (12, 0), (16, 0), (8, -128), (12, -2048), (16, -32768)])
def test_samples_are_exactly_those_of_the_code_stream(bits: int, low: int) -> None:
    rng = np.random.default_rng(bits)
    # Away from the ends of the range, where a decoder may clip what the low-pass adds.
    values = (SMOOTH[:41, :66] * 2**bits * 0.9 + rng.normal(0, 2**bits / 100, (41, 66)) + low).astype(np.int64)
    found = reduced_jpeg2000.decode(j2k(values.astype(stored(bits, low).dtype), bits), 4)
    assert found is not None
    expected = values
    for _ in range(2):
        expected = low_pass(low_pass(expected).T).T
    samples, grid = found
    assert samples.dtype == stored(bits, low).dtype
    assert np.array_equal(samples, expected)
    assert grid == (41, 66, 4, 0.0)
    assert grid.size == samples.shape


# --- By how much


@pytest.mark.parametrize(
    ("rows", "columns", "options", "expected"),
    [
        (512, 512, {}, 4),
        (511, 512, {}, 2),
        (512, 255, {}, 1),
        (127, 4000, {}, 1),
        (2048, 2048, {}, 16),
        (20, 20, {}, 1),
        # Padded, the wide one fills a quarter of the input's rows.
        (128, 512, {"resize": "pad"}, 4),
        (128, 512, {}, 1),
        (2048, 2048, {"decode": "full"}, 1),
        (2048, 2048, {"window": "percentile"}, 1),
        (2048, 2048, {"interpolation": "bilinear"}, 1),
    ],
)
def test_at_least_twice_the_input_is_left(rows: int, columns: int, options: dict[str, Any], expected: int) -> None:
    policy = PixelPolicy(channels=1, height_px=64, width_px=64, **{"decode": "reduced", **options})
    assert factor(policy, rows, columns) == expected


def test_a_stream_of_fewer_resolutions_gives_the_smallest_it_has() -> None:
    found = reduced_jpeg2000.decode(j2k(GREY12, 12, resolutions=2), FACTOR)
    assert found is not None
    assert found[1].factor == 2
    data = file([j2k(GREY12, 12, resolutions=2)], JPEG2000Lossless, GREY12, 12)
    assert is_reduced(data)
    assert worst(data) < LOSSLESS


# --- Whole, where in doubt


def inserted(code: bytes, segment: bytes) -> bytes:
    """The code stream with a marker segment before its first tile part."""
    at = code.index(b"\xff\x90")
    return code[:at] + segment + code[at:]


def with_byte(code: bytes, offset: int, value: int) -> bytes:
    return code[:offset] + bytes([value]) + code[offset + 1 :]


def adobe(code: bytes) -> bytes:
    return code[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01" + code[2:]


RGN = b"\xff\x5e\x00\x05\x00\x00\x00"
UNUSUAL: dict[str, Callable[[], bytes]] = {
    "no resolutions": lambda: file([j2k(GREY12, 12, resolutions=1)], JPEG2000Lossless, GREY12, 12),
    "odd tiles": lambda: file([tiled(stored(8), 130, 101)], JPEG2000Lossless, stored(8)),
    "region of interest": lambda: file([inserted(j2k(GREY12, 12), RGN)], JPEG2000Lossless, GREY12, 12),
    "bits in place of signed values": lambda: file(
        [j2k(stored(12, -2048).view("u2") & 0xFFF, 12)], JPEG2000Lossless, stored(12, -2048), 12
    ),
    "signed values under an unsigned header": lambda: file([j2k(stored(12, -2048), 12)], JPEG2000Lossless, GREY12, 12),
    "bits above those stored": lambda: file([j2k(GREY12, 16)], JPEG2000Lossless, GREY12, 12),
    "deep colour": lambda: file(
        [j2k(np.stack([GREY12] * 3, axis=-1), 12)], JPEG2000Lossless, np.stack([GREY12] * 3, axis=-1), 12
    ),
    "JPEG of signed values": lambda: file([jpeg(stored(8) >> 1)], JPEGBaseline8Bit, stored(8, -128) >> 1),
    "JPEG with Adobe's marker": lambda: file(
        [adobe(jpeg(colour()))], JPEGBaseline8Bit, colour(), PhotometricInterpretation="YBR_FULL_422"
    ),
    "JPEG, turned, with part of a block": lambda: jpeg(stored(8), exif=_turned()),
}


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("kind", UNUSUAL)
def test_the_unusual_is_decoded_whole_and_says_so(kind: str) -> None:
    data = UNUSUAL[kind]()
    whole, reduced = decode(data, WHOLE, kit.LIMITS), decode(data, REDUCED, kit.LIMITS)
    assert np.array_equal(whole.frames[0].pixels, reduced.frames[0].pixels)
    assert sorted({*reduced.remarks} - {*whole.remarks}) == list(REMARK)
    # Whoever wants it whole is not told of it, not even beside one who does not.
    assert [decoded.remarks for decoded in decode_each(data, [WHOLE, REDUCED], kit.LIMITS)] == [
        whole.remarks,
        reduced.remarks,
    ]


@pytest.mark.parametrize(
    "unusual",
    [
        lambda code: with_byte(code, 43, 2),
        lambda code: with_byte(code, 19, 1),
        lambda code: with_byte(code, 35, 1),
        lambda code: with_byte(code, 6, 0x80),
        lambda code: inserted(code, b"\xff\x53\x00\x09\x00\x00\x02\x04\x04\x00\x01"),
        lambda code: code[: code.index(b"\xff\x93")] + RGN + code[code.index(b"\xff\x93") :],
    ],
    ids=["subsampled", "image offset", "tile offset", "part 2", "component's own way", "a tile's own way"],
)
def test_a_code_stream_of_another_form_is_not_reduced(unusual: Callable[[bytes], bytes]) -> None:
    code = j2k(GREY12, 12)
    assert reduced_jpeg2000.decode(code, FACTOR) is not None
    assert reduced_jpeg2000.decode(unusual(code), FACTOR) is None


def _lossless_jpeg() -> bytes:
    return bytes(imagecodecs.jpeg8_encode(GREY12, bitspersample=12, lossless=True, predictor=1))


def _palette() -> bytes:
    tables: dict[str, Any] = {}
    for name in ("Red", "Green", "Blue"):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tables[f"{name}PaletteColorLookupTableData"] = (np.arange(256) * 257).astype("<u2").tobytes()
    like = stored(8)
    return file([j2k(like, 8)], JPEG2000Lossless, like, PhotometricInterpretation="PALETTE COLOR", **tables)


def _tiff() -> bytes:
    stream = BytesIO()
    Image.fromarray(stored(8)).save(stream, "TIFF")
    return stream.getvalue()


def _inks() -> bytes:
    stream = BytesIO()
    Image.fromarray(colour()).convert("CMYK").save(stream, "JPEG", quality=95)
    return stream.getvalue()


ORDINARY: dict[str, Callable[[], bytes]] = {
    "native": lambda: kit.dicom(GREY12, bits=12),
    "padding": lambda: file([j2k(GREY12, 12)], JPEG2000Lossless, GREY12, 12, PixelPaddingValue=0),
    "palette": _palette,
    "an older High Bit": lambda: file([j2k(GREY12 << 4, 16)], JPEG2000Lossless, GREY12, 12, HighBit=15),
    "JPEG-LS": lambda: file([bytes(imagecodecs.jpegls_encode(GREY12))], JPEGLSLossless, GREY12, 12),
    "JPEG lossless": lambda: file([_lossless_jpeg()], JPEGLosslessSV1, GREY12, 12),
    "JPEG of 12 bits": lambda: file(
        [bytes(imagecodecs.jpeg8_encode(GREY12, level=95, bitspersample=12))], JPEGExtended12Bit, GREY12, 12
    ),
    "JPEG of four inks": lambda: _inks(),
    "PNG": lambda: bytes(imagecodecs.png_encode(stored(8))),
    "TIFF": _tiff,
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_what_has_one_size_or_no_mean_is_decoded_whole_without_a_word(kind: str) -> None:
    data = ORDINARY[kind]()
    whole, reduced = decode(data, WHOLE, kit.LIMITS), decode(data, REDUCED, kit.LIMITS)
    assert np.array_equal(whole.frames[0].pixels, reduced.frames[0].pixels)
    assert whole.remarks == reduced.remarks


def test_padding_is_not_mixed_into_what_it_borders_on() -> None:
    like = GREY12.copy()
    like[:, :100] = 0
    plain = file([j2k(like, 12)], JPEG2000Lossless, like, 12)
    padded = file([j2k(like, 12)], JPEG2000Lossless, like, 12, PixelPaddingValue=0)
    assert open_dicom(plain, kit.LIMITS).reduction(REDUCED) == FACTOR
    assert open_dicom(padded, kit.LIMITS).reduction(REDUCED) == 1


def test_damage_is_judged_by_the_whole() -> None:
    code = j2k(GREY12, 12)
    cut = file([code[: len(code) // 2] + b"\xff\xd9"], JPEG2000Lossless, GREY12, 12)
    stray = jpeg(stored(8))
    for data in (cut, stray[: len(stray) // 2]):
        with pytest.raises(kit.ImageError) as whole:
            decode(data, WHOLE, kit.LIMITS)
        with pytest.raises(kit.ImageError) as reduced:
            decode(data, REDUCED, kit.LIMITS)
        assert (reduced.value.code, reduced.value.detail) == (whole.value.code, whole.value.detail)


def test_a_jpeg_whose_end_is_missing_is_whole_and_remarked() -> None:
    data = jpeg(stored(8))[:-2]
    assert decode(data, REDUCED, kit.LIMITS).remarks == ("damaged_end", "decoded_whole")


def test_every_pixel_is_looked_at_before_a_frame_is_called_constant() -> None:
    like = np.full((ROWS, COLUMNS), 1000, np.uint16)
    data = file([j2k(like, 12)], JPEG2000Lossless, like, 12)
    assert decode(data, REDUCED, kit.LIMITS).frames[0].constant
    like[1, 1] = 1001
    data = file([j2k(like, 12)], JPEG2000Lossless, like, 12)
    assert not decode(data, REDUCED, kit.LIMITS).frames[0].constant


def test_each_model_gets_what_it_gets_alone() -> None:
    small = REDUCED.model_copy(update={"height_px": 12, "width_px": 16})
    data = KINDS["J2K, 12 bits"][0]()
    policies = [REDUCED, WHOLE, small, REDUCED]
    together = decode_each(data, policies, kit.LIMITS)
    for decoded, policy in zip(together, policies, strict=True):
        alone = decode(data, policy, kit.LIMITS)
        assert np.array_equal(decoded.frames[0].pixels, alone.frames[0].pixels)
    assert not np.array_equal(together[0].frames[0].pixels, together[1].frames[0].pixels)
