"""Colour: planes, YCbCr and palettes."""

from __future__ import annotations

from collections.abc import Callable

import dicomkit as kit
import numpy as np
from pydicom.dataset import Dataset

from pixel_kinds.kind import ALL, CURVE, JPEG_FAMILY, NATIVE, RGB, Array, Kind, changed, having, of

_RNG = np.random.default_rng(12)


def _ybr(rgb: Array, bits: int, *, partial: bool = False) -> Array:
    """Stored values in YCbCr of RGB in [0, 1], chrominance alike in every two pixels: PS3.3 C.7.6.3.1.2."""
    pairs = rgb.reshape(len(rgb), -1, 2, 3).mean(axis=2, keepdims=True).repeat(2, axis=2).reshape(rgb.shape)
    luma = rgb @ [0.299, 0.587, 0.114]
    mean = pairs @ [0.299, 0.587, 0.114]
    blue, red = (pairs[..., 2] - mean) / 1.772, (pairs[..., 0] - mean) / 1.402
    unit = 2 ** (bits - 8)
    scales = (219 * unit, 224 * unit) if partial else (2**bits - 1, 2**bits - 1)
    offset = 16 * unit if partial else 0
    parts = [offset + scales[0] * luma, 128 * unit + scales[1] * blue, 128 * unit + scales[1] * red]
    return np.clip(np.rint(np.stack(parts, axis=-1)), 0, 2**bits - 1).astype("u1" if bits <= 8 else "<u2")


def _of_ybr(stored: Array, bits: int, *, partial: bool = False) -> Array:
    """What stored YCbCr shows, by the clause's inverse."""
    unit, full = 2 ** (bits - 8), 2**bits - 1
    luma, blue, red = (stored[..., part].astype(float) for part in range(3))
    luma, blue, red = luma - (16 * unit if partial else 0), blue - 128 * unit, red - 128 * unit
    if partial:
        luma, blue, red = luma * 255 / 219, blue * 255 / 224, red * 255 / 224
    rgb = [luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue]
    return np.clip(np.stack(rgb, axis=-1) / full, 0, 1)


def _halved(stored: Array) -> bytes:
    pairs = stored.reshape(-1, 2, 3)
    packed = np.stack([pairs[:, 0, 0], pairs[:, 1, 0], pairs[:, 0, 1], pairs[:, 0, 2]], axis=-1)
    return packed.astype(packed.dtype.newbyteorder("<")).tobytes()


def colours() -> list[Kind]:
    smooth = np.clip(np.cumsum(_RNG.normal(0, 0.08, RGB.shape), axis=1) + 0.5, 0.05, 0.95)
    # DCMTK rounds each term to a whole number of 8 bits.
    rounded = 2.0 / 255
    kinds = [
        Kind(
            "Planar Configuration 1 over compressed frames: as the code stream has them",
            "",
            "PS3.3 C.7.6.3.1.3",
            changed(RGB, having(PlanarConfiguration=1)),
            RGB / 255,
            forms=JPEG_FAMILY,
            remark="planar_configuration_assumed",
        ),
        Kind(
            "Planar Configuration of RLE: its planes, whatever the header",
            "",
            "PS3.5 annex G",
            changed(RGB, having(PlanarConfiguration=1)),
            RGB / 255,
            forms=("rle",),
        ),
        Kind(
            "Signed colour: its samples are unsigned",
            "RGB",
            "PS3.3 C.7.6.3.1.2",
            changed(RGB, having(PixelRepresentation=1)),
            RGB / 255,
            remark="pixel_representation_ignored",
            differs="DCMTK takes samples for two's complement, and adds half the range",
        ),
    ]
    ybr = _ybr(smooth, 8)
    kinds.append(
        Kind(
            "Signed colour: its samples are unsigned",
            "YBR_FULL",
            "PS3.3 C.7.6.3.1.2",
            of(ybr, 8, PhotometricInterpretation="YBR_FULL", PixelRepresentation=1),
            _of_ybr(ybr, 8),
            forms=(*NATIVE, "rle", "jpeg-ls"),
            remark="pixel_representation_ignored",
            differs="DCMTK takes samples for two's complement, and adds half the range",
            rounded=rounded,
        )
    )
    for bits in (8, 12, 16):
        stored = _ybr(smooth, bits)
        kinds.append(
            Kind(
                "YBR_FULL of 8 to 16 bits",
                f"{bits}",
                "PS3.3 C.7.6.3.1.2",
                of(stored, bits, PhotometricInterpretation="YBR_FULL"),
                _of_ybr(stored, bits),
                rounded=rounded,
            )
        )
        for name in ("YBR_FULL_422", "YBR_PARTIAL_422"):
            partial = name == "YBR_PARTIAL_422"
            stored = _ybr(smooth, bits, partial=partial)
            want = _of_ybr(stored, bits, partial=partial)
            change = having(PhotometricInterpretation=name, PixelData=_halved(stored))
            kinds.append(
                Kind(
                    "YBR_FULL_422 and YBR_PARTIAL_422",
                    f"{name}, native, {bits}",
                    "PS3.3 C.7.6.3.1.2",
                    changed(stored, change, bits),
                    want,
                    forms=NATIVE,
                    rounded=rounded,
                )
            )
            kinds.append(
                Kind(
                    "YBR_FULL_422 and YBR_PARTIAL_422",
                    f"{name}, code streams, {bits}",
                    "PS3.3 C.7.6.3.1.2",
                    of(stored, bits, PhotometricInterpretation=name),
                    want,
                    forms=JPEG_FAMILY,
                    differs="DCMTK expects the full range, and of JPEG-LS halved samples",
                    differs_in=ALL if partial else ("jpeg-ls",),
                    rounded=rounded,
                )
            )
    return kinds


def palettes() -> list[Kind]:
    entries = {"Red": CURVE[::32] * 16, "Green": CURVE[::32][::-1] * 15, "Blue": np.arange(64) * 1000}
    want = np.stack([part[kit.ramp(64)] / 65535 for part in entries.values()], axis=-1)
    title = "Palette colour"

    def palette(
        first: int = 0, bits: int = 16, keep: int = 64, shift: int = 0, segmented: bool = False
    ) -> Callable[[Dataset], object]:
        def change(ds: Dataset) -> None:
            ds.PhotometricInterpretation = "PALETTE COLOR"
            for colour, part in entries.items():
                name = f"{colour}PaletteColorLookupTable"
                setattr(ds, f"{name}Descriptor", [64, first & 0xFFFF, bits])
                ds[f"{name}Descriptor"].VR = "US"
                words = (part[:keep] >> shift).astype("<u2").tobytes()
                if bits == 8:
                    words = (part >> 8).astype("u1").tobytes()
                if segmented:
                    words = np.array([0, len(part), *part], "<u2").tobytes()
                data = f"Segmented{name}Data" if segmented else f"{name}Data"
                setattr(ds, data, words)
                ds[data].VR = "OW"

        return change

    stored = kit.ramp(64, "u1")
    twelve = np.stack([(part >> 4)[stored] / 4095 for part in entries.values()], axis=-1)
    eight = np.stack([(part >> 8)[stored] / 255 for part in entries.values()], axis=-1)
    short = np.stack([part[np.minimum(stored, 39)] / 65535 for part in entries.values()], axis=-1)
    signed = (kit.ramp(64) - 20.0).astype("i1")
    clause = "PS3.3 C.7.6.3.1.5, C.7.6.3.1.6"
    return [
        Kind(title, "of 16 bits", clause, changed(stored, palette()), want),
        Kind(title, "of 8 bits, two in a word", clause, changed(stored, palette(bits=8)), eight),
        Kind(title, "of 12 bits", clause, changed(stored, palette(bits=12, shift=4)), twelve),
        Kind(
            title,
            "first value signed",
            clause,
            changed(signed, palette(first=-20)),
            want,
            remark="lut_descriptor_assumed",
        ),
        Kind(title, "short", clause, changed(stored, palette(keep=40)), short, remark="lut_data_short"),
        Kind(
            title,
            "segmented",
            "PS3.3 C.7.9.2",
            changed(stored, palette(segmented=True)),
            want,
            differs="DCMTK reads no segmented palettes",
        ),
        Kind(
            "A palette that is missing is refused",
            "",
            clause,
            changed(stored, having(PhotometricInterpretation="PALETTE COLOR")),
            "RedPaletteColorLookupTable",
        ),
    ]
