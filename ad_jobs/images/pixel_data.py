"""Code streams before they are decoded: whether all of them are there, at the size that the header announces."""

from __future__ import annotations

from collections.abc import Iterable

from ad_jobs.errors import ErrorCode, ImageError
from ad_jobs.images.codestream import JPEG_LS, check_code, has_end, jpeg_frame
from ad_jobs.images.policy import Limits
from cluster.counting import counted


def check_codestreams(codes: Iterable[bytes], size: tuple[int, int], frames: int, limits: Limits) -> None:
    """Raise ImageError if a frame is missing, cut short, or announces another size than the header.

    The size also guards the decoders: they allocate what the code stream says, not what the header says.
    """
    found = 0
    for code in codes:
        announced = check_code(code, limits)
        if announced is not None:
            if announced != size:
                detail = f"frame {found} is {announced[0]} x {announced[1]}, not as announced"
                raise ImageError(ErrorCode.CORRUPT, detail)
            # libjpeg tells by itself what is missing of a JPEG.
            frame = jpeg_frame(code)
            if (frame is None or frame.marker == JPEG_LS) and not has_end(code):
                raise ImageError(ErrorCode.TRUNCATED, f"frame {found} has no end marker")
        found += 1
        if found == frames:
            return
    raise ImageError(ErrorCode.TRUNCATED, f"{found} of {counted(frames, 'frame')}")
