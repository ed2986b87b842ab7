"""Bytes to frames: sniff, check, decode, window, resize."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images import jpeg, png, tiff
from ad_jobs.images.domain import Taker, Traits
from ad_jobs.images.geometry import Geometry, resize
from ad_jobs.images.libraries import quiet
from ad_jobs.images.model_input import FULL_SCALE
from ad_jobs.images.picture import Picture, Shown, check_frames, check_input, check_input_pixels
from ad_jobs.images.policy import WHOLE_RANGE, Limits, PixelPolicy
from ad_jobs.images.remarks import Remark
from ad_jobs.images.sniff import kind_of, sniff
from ad_jobs.schema import DEMOGRAPHICS, MANIFEST, MANIFEST_HEADERS

__all__ = ["Decoded", "Frame", "View", "decode", "decode_each", "preview", "read_header", "refusals", "view"]

# The columns of a manifest that an object's bytes tell; its name tells the others.
_OF_THE_BYTES = tuple(name for name in MANIFEST_HEADERS.names if name not in (*MANIFEST.names, "group"))
# Between the pixels that are looked at first.
GRID_PX = 16
# Between the channels of a grey picture in a colour format, once a lossy encoder has rounded them.
TINT = 8 / 255
# Rec. 601 luma, the Y of YBR_FULL in PS3.3 C.7.6.3.1.2: what a grey detector sees of a colour picture.
LUMA = np.array([0.299, 0.587, 0.114])


class Frame(NamedTuple):
    """One frame at a detector's input size, or as it is to be cut into tiles, ready to be stored.

    `geometry` is that of the whole frame, however it was decoded.
    `pixels` are [c, height_px, width_px], 65535 = 1.0; c = 1 for grey, 3 for colour.
    `constant`: every pixel of the source is alike, as a decoder's silent zeros are.
    `colour`: the source's channels differ by more than `TINT`, whatever `pixels` have of them.
    """

    # A frame is a record: tuple.index is of no use to it.
    index: int  # type: ignore[assignment]
    pixels: npt.NDArray[np.uint16]
    geometry: Geometry
    constant: bool
    colour: bool = False


class Decoded(NamedTuple):
    """All frames of one object, what its header may tell, and remarks, in ABC order.

    `header` has the keys of schema.HEADER, and of DICOM what else `domain.Traits` and a calibration ask for.
    `refused` says of each model that was given why it does not take the object, None where it does; `error` is what
    keeps the others from it.
    """

    frames: list[Frame]
    header: dict[str, object]
    remarks: tuple[str, ...] = ()
    refused: tuple[str | None, ...] = ()
    error: ImageError | None = None


class View(NamedTuple):
    """A frame for a viewer: grey uint16 [h, w] with 65535 = 1.0, or colour uint8 [h, w, 3]; of `rows` x `columns`."""

    pixels: npt.NDArray[np.uint16] | npt.NDArray[np.uint8]
    rows: int
    columns: int


def decode(data: bytes, policy: PixelPolicy, limits: Limits, *, only: int | None = None) -> Decoded:
    """As `decode_each`, under one policy."""
    (decoded,) = decode_each(data, [policy], limits, only=only)
    return decoded


def decode_each(
    data: bytes,
    policies: Sequence[PixelPolicy],
    limits: Limits,
    *,
    only: int | None = None,
    takers: Sequence[Taker] = (),
) -> list[Decoded]:
    """Every frame of the object `data` (or frame `only`) under each of the policies, and its header.

    With `takers` frames are of the policies of those that take the object; where none does its pixels are not decoded.

    Frames are decoded and resized one by one, so memory holds one frame at its stored size.
    Policies of one window and one reduction share a single decoding.
    The pixels of a grey source have one channel; those of a colour source have `policy.channels` (one channel is its
    luma), or one where its channels are equal: it is grey.

    Raises:
        ImageError: the object cannot be scored; the code says why, the detail holds no header text. Not raised where
            one of the takers refuses it all the same: then it is the others' `error`.
    """
    with quiet():
        picture = _open(data, limits)
        traits = Traits.of(picture.header)
        refused = _refused(picture, takers)
        wanted = {taker.policy for taker, reason in zip(takers, refused, strict=True) if reason is None}
        if not takers:
            wanted = set(range(len(policies)))
        try:
            frames = _frames(picture, policies, wanted, limits, only)
        except ImageError as error:
            if not any(refused):
                raise error.knowing(picture.header) from error
            return [Decoded([], {}, (), refused, error) for _ in policies]
    coloured = any(frame.colour for found in frames for frame in found)
    refused = tuple(taker.domain.refusal(traits, coloured) for taker in takers)
    if refused and None not in refused:
        frames = [[] for _ in policies]
    found = []
    for of_policy, policy in zip(frames, policies, strict=True):
        # Who wanted it whole is not told that it was.
        unsaid = {Remark.DECODED_WHOLE} if picture.reduction(policy) == 1 else set()
        found.append(Decoded(of_policy, picture.header, tuple(sorted(picture.remarks - unsaid)), refused))
    return found


def refusals(data: bytes, limits: Limits, takers: Sequence[Taker]) -> tuple[str | None, ...]:
    """Of each taker, why it does not take the object, None where it does, as far as the header tells.

    Raises:
        ImageError: the header cannot be read.
    """
    with quiet():
        return _refused(_open(data, limits), takers)


def _refused(picture: Picture, takers: Sequence[Taker]) -> tuple[str | None, ...]:
    traits = Traits.of(picture.header)
    return tuple(taker.domain.refusal(traits) for taker in takers)


def _frames(
    picture: Picture, policies: Sequence[PixelPolicy], wanted: set[int], limits: Limits, only: int | None
) -> list[list[Frame]]:
    """Of each policy the frames, none of those that are not wanted."""
    frames: list[list[Frame]] = [[] for _ in policies]
    if not wanted:
        return frames
    count = picture.frames if only is None else 1
    size = picture.header["rows"], picture.header["columns"]
    check_input(count, size, [policies[number] for number in sorted(wanted)], limits)
    # Pages of a TIFF may be larger than its first one.
    input_pixels = 0
    ways = {number: (policies[number].window, picture.reduction(policies[number])) for number in sorted(wanted)}
    for way in dict.fromkeys(ways.values()):
        sharing = [number for number, other in ways.items() if other == way]
        for shown in _read(picture, policies[sharing[0]], only):
            for number in sharing:
                frames[number].append(_frame(shown, policies[number]))
                input_pixels += prod(frames[number][-1].geometry.size_px)
                check_input_pixels(count, input_pixels, limits)
    return frames


def preview(data: bytes, frame: int, policy: PixelPolicy, limits: Limits, max_side: int = 512) -> npt.NDArray[np.uint8]:
    """A frame for display, [h, w, 3] in its own aspect, at most `max_side` long, under the policy's window.

    Raises:
        ImageError: as `decode`; also when the object has no such frame.
    """
    small = _at_most(_one_frame(data, frame, policy, limits), max_side)
    shown = np.rint(np.clip(small, 0.0, 1.0) * 255).astype(np.uint8)
    return shown if shown.ndim == 3 else np.repeat(shown[..., None], 3, axis=2)


def view(data: bytes, frame: int, policy: PixelPolicy, limits: Limits, max_side: int, *, whole_range: bool) -> View:
    """A frame with all of its grey levels, in its own aspect, at most `max_side` long, under the policy's window.

    `whole_range`: grey goes from the frame's least value to its greatest instead.

    Raises:
        ImageError: as `preview`.
    """
    asked = policy.model_copy(update={"window": WHOLE_RANGE}) if whole_range else policy
    pixels = _one_frame(data, frame, asked, limits)
    full = 255 if pixels.ndim == 3 else FULL_SCALE
    shown = np.rint(np.clip(_at_most(pixels, max_side), 0.0, 1.0) * np.float32(full))
    return View(shown.astype(np.uint8 if pixels.ndim == 3 else np.uint16), *pixels.shape[:2])


def _one_frame(data: bytes, frame: int, policy: PixelPolicy, limits: Limits) -> npt.NDArray[np.floating[Any]]:
    with quiet():
        picture = _open(data, limits)
        if not 0 <= frame < picture.frames:
            raise ImageError(ErrorCode.UNSUPPORTED_IMAGE, f"no frame {frame}: the object has {picture.frames}")
        return next(picture.read(_whole(policy), only=frame)).pixels


def _at_most(pixels: npt.NDArray[np.floating[Any]], max_side: int) -> npt.NDArray[np.float32]:
    rows, columns = pixels.shape[:2]
    scale = min(1.0, max_side / max(rows, columns))
    return resize(pixels, max(1, round(rows * scale)), max(1, round(columns * scale)))


def read_header(data: bytes, size: int | None = None, *, demographics: bool = False) -> dict[str, Any]:
    """What schema.MANIFEST_HEADERS tells of an object's bytes; never raises on bad ones.

    `data` may be the object's first bytes, `size` then is its full length.
    With `demographics` also the columns of schema.DEMOGRAPHICS.
    Where they do not suffice or the header cannot be read, `header_error` holds the code (`truncated`,
    `unknown_format`, ...) and the rest what was found.
    """
    known: dict[str, Any] = dict.fromkeys([*_OF_THE_BYTES, *(DEMOGRAPHICS.names if demographics else ())])
    known["kind"] = kind_of(data[:4096])
    formats = {"png": png, "jpeg": jpeg, "tiff": tiff}
    try:
        if not data:
            raise ImageError(ErrorCode.EMPTY, "zero bytes")
        if known["kind"] not in ("dicom", *formats):
            raise ImageError(ErrorCode.UNKNOWN_FORMAT, "no known format")
        length = len(data) if size is None else size
        with quiet():
            if known["kind"] == "dicom":
                from ad_jobs.images import dicom

                known.update(dicom.read_header(data, length, demographics=demographics))
            else:
                known.update(formats[known["kind"]].read_header(data, length))
    except ImageError as error:
        # Whatever goes wrong with a part may go well with the whole.
        certain = error.code in (ErrorCode.UNKNOWN_FORMAT, ErrorCode.TOO_MANY_BYTES)
        partial = size is not None and len(data) < size and not certain
        known["header_error"] = str(ErrorCode.TRUNCATED if partial else error.code)
    return known


def _open(data: bytes, limits: Limits) -> Picture:
    if not data:
        raise ImageError(ErrorCode.EMPTY, "zero bytes")
    if len(data) > limits.max_bytes:
        raise ImageError(ErrorCode.TOO_MANY_BYTES, f"{len(data)} bytes, over max_bytes {limits.max_bytes}")
    picture: Picture
    match sniff(data[:4096]):
        case "dicom":
            # pydicom and its decoders: most processes that import this module decode nothing, or no DICOM.
            from ad_jobs.images import dicom

            picture = dicom.open_dicom(data, limits)
        case "png":
            picture = png.open_png(data, limits)
        case "jpeg":
            picture = jpeg.open_jpeg(data, limits)
        case "tiff":
            picture = tiff.open_tiff(data, limits)
        case None:
            raise ImageError(ErrorCode.UNKNOWN_FORMAT, "neither DICOM, PNG, JPEG nor TIFF by its first bytes")
    check_frames(picture.frames, limits)
    return picture


def _read(picture: Picture, policy: PixelPolicy, only: int | None) -> Iterator[Shown]:
    """As `picture.read`, but for frames that are constant once they are reduced: of these every pixel is looked at."""
    for shown in picture.read(policy, only=only):
        if shown.grid is not None and _is_constant(shown.pixels):
            yield from picture.read(_whole(policy), only=shown.number)
        else:
            yield shown


def _whole(policy: PixelPolicy) -> PixelPolicy:
    return policy.model_copy(update={"decode": "full"})


def _frame(shown: Shown, policy: PixelPolicy) -> Frame:
    index, pixels, grid = shown
    rows, columns = pixels.shape[:2] if grid is None else (grid.rows, grid.columns)
    constant = _is_constant(pixels)
    colour = pixels.ndim == 3 and not _everywhere(pixels, lambda part: np.ptp(part, axis=-1) <= TINT)
    if pixels.ndim == 3 and policy.channels == 1:
        pixels = pixels @ LUMA
    elif pixels.ndim == 3 and not colour and _everywhere(pixels, lambda part: part == part[..., :1]):
        pixels = pixels[..., 0]
    geometry = Geometry.of(policy, rows, columns)
    if grid is None:
        resized = geometry.to_input(pixels, policy.interpolation)
    else:
        resized = geometry.reduced_to_input(pixels, grid)
    stored = np.rint(np.clip(resized, 0.0, 1.0) * np.float32(FULL_SCALE)).astype(np.uint16)
    channels_first = stored[None] if stored.ndim == 2 else np.ascontiguousarray(stored.transpose(2, 0, 1))
    return Frame(index, channels_first, geometry, constant, colour)


def _is_constant(pixels: npt.NDArray[np.floating[Any]]) -> bool:
    return _everywhere(pixels, lambda part: part == part[:1, :1])


def _everywhere(
    pixels: npt.NDArray[np.floating[Any]], holds: Callable[[npt.NDArray[np.floating[Any]]], npt.NDArray[np.bool_]]
) -> bool:
    """Whether it holds of all pixels; a coarse grid says no for most pictures, at a fraction of the cost."""
    return all(bool(holds(part).all()) for part in (pixels[::GRID_PX, ::GRID_PX], pixels))
