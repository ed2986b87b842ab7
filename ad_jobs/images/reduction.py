"""By how much a frame may be reduced while it is decoded: to no less than twice what the detector sees of it.

JPEG 2000 holds a frame at halved resolutions, and JPEG gives it at a half, a quarter and an eighth from its
coefficients; the rest of the way is a mean by area, as from the whole frame.
What they keep is a low-pass of stored values: windows and tables, which are applied to it, come after the mean instead
of before, and so a steep one may give another grey where a reduced pixel lies across an edge.
"""

from __future__ import annotations

from ad_jobs.images.geometry import Geometry
from ad_jobs.images.policy import PixelPolicy

# Reduced pixels a side of an input pixel, at least: with fewer the filters of the formats would show.
OVERSAMPLING = 2


def factor(policy: PixelPolicy, rows: int, columns: int) -> int:
    """The largest power of two by which a frame of `rows` x `columns`, as displayed, may be reduced under the policy.

    1 for whatever needs every pixel: a policy of `decode: full`, percentiles, or a filter other than the mean.
    """
    if policy.decode == "full" or policy.window == "percentile" or policy.interpolation != "area":
        return 1
    box = Geometry.of(policy, rows, columns)
    most = min(rows // (OVERSAMPLING * box.height), columns // (OVERSAMPLING * box.width))
    return 1 << max(most, 1).bit_length() - 1
