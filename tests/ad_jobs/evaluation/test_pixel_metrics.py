"""Metrics of heatmaps against hand-computed values, scikit-learn, and slow versions written from their definitions."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from ad_jobs.evaluation import pixel_metrics
from ad_jobs.evaluation.pixel_metrics import PixelEvaluation, PixelHistogram

# Both sides add the same terms in another order: a few units in the last place of a double.
ROUND_OFF = 1e-12


def heatmaps_and_masks(seed: int, images: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    """Non-square heatmaps on the 16-bit scale, with masks of several regions; the last one is normal."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(images):
        mask = ndimage.binary_dilation(rng.random((20, 31)) < (0.0 if i == images - 1 else 0.01), iterations=2)
        level = np.clip(rng.normal(0.3, 0.1, mask.shape) + 0.15 * mask, 0, 1)
        made.append((np.rint(level * 65535) / 65535, mask))
    return made


def slow_aupro(pairs: list[tuple[np.ndarray, np.ndarray]], max_fpr: float) -> float:
    """AUPRO by its definition: threshold by threshold, region by region, all maps in memory."""
    thresholds = np.unique(np.concatenate([heatmap.ravel() for heatmap, _ in pairs]))[::-1]
    negatives = sum(int((~mask).sum()) for _, mask in pairs)
    points = [(0.0, 0.0)]
    for t in thresholds:
        alarms = sum(int(((heatmap >= t) & ~mask).sum()) for heatmap, mask in pairs)
        overlaps = []
        for heatmap, mask in pairs:
            regions, count = ndimage.label(mask, structure=np.ones((3, 3)))
            overlaps += [float((heatmap[regions == k] >= t).mean()) for k in range(1, count + 1)]
        points.append((alarms / negatives, float(np.mean(overlaps))))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 <= max_fpr:
            area += (x1 - x0) * (y0 + y1) / 2
        elif x0 < max_fpr:
            at_limit = y0 + (y1 - y0) * (max_fpr - x0) / (x1 - x0)
            area += (max_fpr - x0) * (y0 + at_limit) / 2
    return area / max_fpr


class TestPixelHistogram:
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_exact_on_the_16_bit_scale(self, seed):
        histogram = PixelHistogram()
        pairs = heatmaps_and_masks(seed)
        for heatmap, mask in pairs:
            histogram.update(heatmap.astype(np.float32), mask)
        values = np.concatenate([heatmap.ravel() for heatmap, _ in pairs])
        labels = np.concatenate([mask.ravel() for _, mask in pairs])
        assert histogram.pixel_auroc() == pytest.approx(roc_auc_score(labels, values), abs=ROUND_OFF)
        assert histogram.pixel_ap() == pytest.approx(average_precision_score(labels, values), abs=ROUND_OFF)
        assert histogram.aupro() == pytest.approx(slow_aupro(pairs, 0.3), abs=ROUND_OFF)

    @pytest.mark.parametrize("bins", [16, 256])
    def test_coarse_bins_err_by_at_most_half_the_pairs_that_share_one(self, bins):
        histogram = PixelHistogram(bins)
        pairs = heatmaps_and_masks(7)
        for heatmap, mask in pairs:
            histogram.update(heatmap, mask)
        values = np.concatenate([heatmap.ravel() for heatmap, _ in pairs])
        labels = np.concatenate([mask.ravel() for _, mask in pairs])
        pixels = histogram.pixels()
        tolerance = (pixels.normal * pixels.abnormal).sum() / 2 / (labels.sum() * (~labels).sum())
        assert histogram.pixel_auroc() == pytest.approx(roc_auc_score(labels, values), abs=tolerance)

    def test_aupro_weighs_regions_not_pixels(self):
        # One region of nine pixels is found, one of a single pixel is not: half of the regions.
        heatmap, mask = np.zeros((8, 10)), np.zeros((8, 10), dtype=bool)
        mask[1:4, 1:4] = mask[6, 7] = True
        heatmap[1:4, 1:4] = 1.0
        heatmap[6, 7] = 0.0
        histogram = PixelHistogram()
        histogram.update(heatmap, mask)
        # The curve is (0, 0.5) to (1, 1): at 0.3 it has reached 0.65.
        assert histogram.aupro() == pytest.approx((0.5 + 0.65) / 2)

    def test_regions_touching_at_a_corner_are_one(self):
        heatmap, mask = np.zeros((5, 6)), np.zeros((5, 6), dtype=bool)
        mask[1, 1] = mask[2, 2] = mask[3, 3] = True
        heatmap[1, 1] = 1.0
        histogram = PixelHistogram()
        histogram.update(heatmap, mask)
        assert histogram.counts[2, 0, -1] == pytest.approx(1 / 3)

    def test_merging_equals_counting_in_one(self):
        whole, left, right = PixelHistogram(), PixelHistogram(), PixelHistogram()
        for i, (heatmap, mask) in enumerate(heatmaps_and_masks(11)):
            whole.update(heatmap, mask)
            (left if i % 2 else right).update(heatmap, mask)
        left.merge(right)
        np.testing.assert_allclose(left.counts, whole.counts, rtol=0, atol=ROUND_OFF)

    def test_normals_alone_have_no_metric(self):
        histogram = PixelHistogram()
        histogram.update(np.full((4, 5), 0.2), np.zeros((4, 5), dtype=bool))
        assert histogram.pixel_auroc() is None
        assert histogram.aupro() is None

    @pytest.mark.parametrize("bad", [1.5, -0.1, np.nan])
    def test_refuses_values_outside_the_scale(self, bad):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            PixelHistogram().update(np.full((2, 3), bad), np.zeros((2, 3), dtype=bool))


class TestPaperProtocol:
    def test_soft_masks_by_hand(self):
        # Three pixels of values 0, 0.5, 0.999 with soft mask 0, 0.5, 1:
        # (FPR, TPR) runs (0, 0) -> (0, 2/3) -> (1/3, 1) -> (1, 1).
        histogram = PixelHistogram(1000)
        histogram.update_soft(np.array([[0.0, 0.5, 0.999]]), np.array([[0.0, 0.5, 1.0]]))
        assert histogram.pixel_auroc() == pytest.approx((1 / 3) * (2 / 3 + 1) / 2 + 2 / 3)

    def test_equals_the_thousand_thresholds(self):
        rng = np.random.default_rng(5)
        maps, masks = rng.random((3, 16, 24)) ** 2, rng.random((3, 16, 24)) ** 4
        maps[masks > 0.3] = np.sqrt(maps[masks > 0.3])
        histogram = PixelHistogram(1000)
        for heatmap, mask in zip(maps, masks, strict=True):
            histogram.update_soft(heatmap, mask)
        fpr, tpr = [0.0], [0.0]
        for t in np.arange(1000)[::-1] / 1000:
            predicted = maps >= t
            tpr.append((predicted * masks).sum() / masks.sum())
            fpr.append((predicted * (1 - masks)).sum() / (1 - masks).sum())
        area = sum((fpr[i + 1] - fpr[i]) * (tpr[i + 1] + tpr[i]) / 2 for i in range(1000))
        assert histogram.pixel_auroc() == pytest.approx(area, abs=1e-9)

    def test_a_value_on_a_threshold_reaches_it(self):
        steps = np.arange(1000) / 1000
        assert pixel_metrics.threshold_of(steps, 1000).tolist() == list(range(1000))

    def test_normal_images_do_not_count(self):
        heatmap, mask = heatmaps_and_masks(1)[0]
        alone, beside_normals = PixelEvaluation(replicates=0), PixelEvaluation(replicates=0)
        for evaluation in (alone, beside_normals):
            evaluation.update(heatmap, mask.astype(float), "a")
        beside_normals.update(np.ones_like(heatmap), None, "b")
        name = "pixel_auroc_paper_protocol"
        assert beside_normals.result()[name] == alone.result()[name]
        assert beside_normals.result()["pixel_auroc"] != alone.result()["pixel_auroc"]

    def test_flat_heatmap_is_no_division_by_zero(self):
        assert not pixel_metrics.stretch(np.full((3, 4), 0.7)).any()


class TestPixelEvaluation:
    def test_intervals_lie_about_the_exact_values_whatever_the_order(self):
        pairs = [(f"image {i}", *pair) for i, pair in enumerate(heatmaps_and_masks(2, images=12))]
        results = []
        for order in (pairs, pairs[::-1]):
            evaluation = PixelEvaluation(seed=4, replicates=50)
            for name, heatmap, mask in order:
                evaluation.update(heatmap, mask.astype(float) if mask.any() else None, name)
            results.append(evaluation.result())
        for name in pixel_metrics.PIXEL_METRICS:
            estimate = results[0][name]
            assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
            assert estimate["low"] < estimate["high"]
            assert results[1][name] == pytest.approx(estimate, abs=1e-9)

    def test_a_tiny_defect_keeps_its_strongest_pixel(self):
        soft = np.zeros((6, 7))
        soft[2, 3], soft[2, 4] = 0.2, 0.1
        assert np.argwhere(pixel_metrics.harden(soft)).tolist() == [[2, 3]]
        assert not pixel_metrics.harden(np.zeros((6, 7))).any()
