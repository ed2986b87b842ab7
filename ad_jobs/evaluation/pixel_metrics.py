"""Metrics of heatmaps against masks, in one pass and bounded memory however many images there are.

Every pixel is put into the bin of its 16-bit value, which is what a run stores, so nothing is lost: pixel AUROC, pixel
average precision and AUPRO are exact.
A heatmap finer than 16 bits is rounded to them first (at most 1/131070).
Intervals come from a Poisson bootstrap: each image (or group) counts Poisson(1) times in each of 200 replicates, drawn
from its own name, so neither the order of the images nor a split into several collectors changes them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ad_jobs.evaluation import ranking
from ad_jobs.evaluation.curves import thin
from ad_jobs.evaluation.intervals import Estimate, estimate, poisson_weights
from ad_jobs.evaluation.ranking import FloatArray, Histograms

BINS = 65536
AUPRO_MAX_FPR = 0.3
PAPER_THRESHOLDS = 1000
REPLICATES = 200
# Replicates only have to show a spread around the exact value: 1/1024 of the scale is fine for that.
REPLICATE_BINS = 1024
# A mask pixel is abnormal when at least half of what it covers in the original is.
MASK_LEVEL = 0.5
PIXEL_METRICS = ("pixel_auroc", "aupro", "pixel_ap", "pixel_auroc_paper_protocol")

_EIGHT_CONNECTED = np.ones((3, 3), dtype=int)
_NORMAL, _ABNORMAL, _OVERLAP = range(3)


class PixelHistogram:
    """Weights of normal and abnormal pixels, and of abnormal regions, per heatmap value.

    It has one row, or several that count the same pixels with different weights (bootstrap replicates).
    """

    def __init__(self, bins: int = BINS, rows: int = 1) -> None:
        self.bins = bins
        self.counts = np.zeros((3, rows, bins), dtype=np.float64)

    def update(
        self, heatmap: npt.NDArray[np.floating], mask: npt.NDArray[np.bool_], weights: FloatArray | None = None
    ) -> None:
        """Count one image.

        Args:
            heatmap: [H, W] in [0, 1].
            mask: [H, W], True where abnormal.
            weights: how often the image counts in each row [rows]; once if left out.

        Raises:
            ValueError: shapes differ, or a value lies outside [0, 1] or is not a number.
        """
        if heatmap.shape != mask.shape or heatmap.ndim != 2:
            raise ValueError(f"Heatmap {heatmap.shape} and mask {mask.shape} must be 2-D and of one shape")
        regions, count = ndimage.label(mask, structure=_EIGHT_CONNECTED)
        size = np.bincount(regions.ravel(), minlength=count + 1)
        in_region = mask.ravel().astype(np.float64)
        # A region's pixels share a weight of one, so the sum over regions of "share above t" is one histogram.
        overlap = in_region / size[regions.ravel()]
        index = bin_of(heatmap, self.bins).ravel()
        self._add(index, (1 - in_region, in_region, overlap), weights)

    def update_soft(
        self, heatmap: npt.NDArray[np.floating], mask: npt.NDArray[np.floating], weights: FloatArray | None = None
    ) -> None:
        """Count one image with a soft mask: a pixel is `mask` abnormal and `1 - mask` normal. No regions."""
        if heatmap.shape != mask.shape:
            raise ValueError(f"Heatmap {heatmap.shape} and mask {mask.shape} must be of one shape")
        soft = np.clip(mask.ravel().astype(np.float64), 0.0, 1.0)
        index = threshold_of(heatmap, self.bins).ravel()
        self._add(index, (1 - soft, soft, np.zeros_like(soft)), weights)

    def _add(self, index: npt.NDArray[np.int64], channels: tuple[FloatArray, ...], weights: FloatArray | None) -> None:
        times = np.ones(1) if weights is None else weights
        for channel, values in enumerate(channels):
            found = np.bincount(index, values, minlength=self.bins)
            used = np.flatnonzero(found)
            if used.size:
                self.counts[channel][:, used] += np.outer(times, found[used])

    def merge(self, other: PixelHistogram) -> None:
        """Add what another collector of the same shape has counted."""
        if other.counts.shape != self.counts.shape:
            raise ValueError(f"Cannot merge {other.counts.shape} into {self.counts.shape}")
        self.counts += other.counts

    def pixels(self, row: int = 0) -> Histograms:
        """Normal and abnormal pixels of one row."""
        return Histograms(self.counts[_NORMAL, row], self.counts[_ABNORMAL, row])

    def pixel_auroc(self, row: int = 0) -> float | None:
        """Area under the ROC curve over all pixels; None without normal or without abnormal pixels."""
        return ranking.auroc(self.pixels(row))

    def pixel_ap(self, row: int = 0) -> float | None:
        """Average precision over all pixels; None without normal or without abnormal pixels."""
        return ranking.average_precision(self.pixels(row))

    def aupro(self, row: int = 0, max_fpr: float = AUPRO_MAX_FPR) -> float | None:
        """Mean overlap per region over false positive rates up to `max_fpr` (1 is perfect); or None."""
        regions = Histograms(self.counts[_NORMAL, row], self.counts[_OVERLAP, row])
        return ranking.partial_auroc(regions, max_fpr)


class PixelEvaluation:
    """Collects heatmaps and masks, and gives every pixel metric with its interval."""

    def __init__(self, *, seed: int = 0, replicates: int = REPLICATES) -> None:
        self.seed = seed
        self.replicates = replicates
        self._exact = PixelHistogram()
        self._paper = PixelHistogram(PAPER_THRESHOLDS)
        # Row 0 counts every image once: it tells what the coarser bins alone change.
        self._spread = PixelHistogram(REPLICATE_BINS, replicates + 1)
        self._paper_spread = PixelHistogram(PAPER_THRESHOLDS, replicates + 1)
        self._groups: set[str] = set()
        self._abnormal_groups: set[str] = set()

    def update(self, heatmap: npt.NDArray[np.floating], mask: npt.NDArray[np.floating] | None, group: str) -> None:
        """Count one image.

        Args:
            heatmap: [H, W] in [0, 1] on the run's global scale.
            mask: [H, W] soft mask in [0, 1], or None for a normal image, all of whose pixels are normal.
            group: the image's name, or what it shares with the images it must be drawn with.
        """
        weights = np.concatenate([[1.0], poisson_weights(group, self.seed, self.replicates)])
        abnormal = np.zeros(heatmap.shape, dtype=bool) if mask is None else harden(mask)
        self._exact.update(heatmap, abnormal)
        self._spread.update(heatmap, abnormal, weights)
        self._groups.add(group)
        if mask is not None and abnormal.any():
            self._abnormal_groups.add(group)
            stretched = stretch(heatmap)
            self._paper.update_soft(stretched, mask)
            self._paper_spread.update_soft(stretched, mask, weights)

    def result(self) -> dict[str, Estimate]:
        """The metrics of PIXEL_METRICS; no interval below two groups with an abnormal pixel."""
        exact, paper = self._exact, self._paper
        spread, paper_spread = self._spread, self._paper_spread
        rows = range(1, self.replicates + 1) if len(self._abnormal_groups) > 1 else range(0)
        return {
            "pixel_auroc": _centred(exact.pixel_auroc(), spread.pixel_auroc(), [spread.pixel_auroc(r) for r in rows]),
            "aupro": _centred(exact.aupro(), spread.aupro(), [spread.aupro(r) for r in rows]),
            "pixel_ap": _centred(exact.pixel_ap(), spread.pixel_ap(), [spread.pixel_ap(r) for r in rows]),
            "pixel_auroc_paper_protocol": _centred(
                paper.pixel_auroc(), paper_spread.pixel_auroc(), [paper_spread.pixel_auroc(r) for r in rows]
            ),
        }

    def roc(self) -> tuple[list[float], list[float]] | None:
        """The ROC curve over all pixels (false, true positive rate), thinned; None without both kinds."""
        pixels = self._exact.pixels()
        return thin(*ranking.roc(pixels)) if pixels.has_both() else None


def bin_of(heatmap: npt.NDArray[np.floating], bins: int) -> npt.NDArray[np.int64]:
    """The bin of each value: nearest of `bins` equally spaced values from 0 to 1, by way of the 16-bit value.

    Raises:
        ValueError: a value lies outside [0, 1] or is not a number.
    """
    if not (np.isfinite(heatmap).all() and heatmap.min(initial=0.0) >= 0 and heatmap.max(initial=0.0) <= 1):
        raise ValueError("Heatmap values must lie in [0, 1]")
    level = np.rint(heatmap.astype(np.float64) * (BINS - 1)).astype(np.int64)
    return level * bins // BINS


def threshold_of(heatmap: npt.NDArray[np.floating], thresholds: int) -> npt.NDArray[np.int64]:
    """The highest of the thresholds 0, 1/n, ... (n-1)/n that each value reaches (value >= threshold)."""
    steps = np.arange(thresholds) / thresholds
    return np.searchsorted(steps, np.clip(heatmap, 0.0, 1.0).astype(np.float64), side="right") - 1


def harden(mask: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """The soft mask [H, W] cut at one half, True where abnormal.

    A defect too small to fill half a pixel anywhere keeps its strongest pixels: a marked image never loses its mark.
    """
    peak = float(mask.max(initial=0.0))
    level = min(MASK_LEVEL, peak)
    return (mask >= level) & (mask > 0)


def stretch(heatmap: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The heatmap stretched to its own minimum and maximum; all zero if it is flat.

    Only for the paper's localization protocol, whose thresholds 0 to 0.999 presuppose it.
    There the stretch comes before the blur and ends at the 99th percentile; a stored heatmap is blurred already, so its
    maximum takes that place.
    """
    values = heatmap.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _centred(value: float | None, coarse: float | None, drawn: list[float | None]) -> Estimate:
    """The replicates' interval about the value: moved by what the coarse bins alone change."""
    if value is None or coarse is None:
        return estimate(value, [])
    moved = [min(max(d + value - coarse, 0.0), 1.0) for d in drawn if d is not None]
    return estimate(value, moved)
