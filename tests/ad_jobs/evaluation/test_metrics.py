"""Metrics against hand-computed values, scikit-learn, and slow versions written from their definitions."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from ad_jobs.evaluation import image_metrics, pixel_metrics, ranking
from ad_jobs.evaluation.pixel_metrics import PixelEvaluation, PixelHistogram

# Both sides add the same terms in another order: a few units in the last place of a double.
ROUND_OFF = 1e-12


def scored_images(seed: int, n: int = 200, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    anomalous = rng.random(n) < 0.3
    scores = rng.normal(size=n) + anomalous
    return (np.round(scores * levels) / levels if levels else scores), anomalous


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


class TestImageMetrics:
    """scores 1 2 3 4 5 6, anomalous 0 0 1 0 1 1: one of nine pairs (4 before 3) is in the wrong order."""

    SCORES = (1, 2, 3, 4, 5, 6)
    ANOMALOUS = (0, 0, 1, 0, 1, 1)

    def test_auroc_by_hand(self):
        assert image_metrics.image_auroc(self.SCORES, self.ANOMALOUS) == pytest.approx(8 / 9)

    def test_average_precision_by_hand(self):
        # Recall rises at 6, 5 and 3, where precision is 1, 1 and 3/4.
        assert image_metrics.image_ap(self.SCORES, self.ANOMALOUS) == pytest.approx((1 + 1 + 3 / 4) / 3)

    def test_f1_max_by_hand(self):
        # At 3: three hits, one false alarm, none missed.
        assert image_metrics.f1_max(self.SCORES, self.ANOMALOUS) == pytest.approx(6 / 7)

    def test_accuracy_max_by_hand(self):
        assert image_metrics.accuracy_max(self.SCORES, self.ANOMALOUS) == pytest.approx(5 / 6)

    def test_accuracy_max_does_not_flag_nothing(self):
        # Only observed scores are thresholds, so the best is to flag everything from 2 up.
        assert image_metrics.accuracy_max([1, 2, 2, 2], [1, 0, 0, 0]) == pytest.approx(1 / 4)

    def test_accuracy_zero_fn_by_hand(self):
        # Threshold 3 misses nothing and flags the normal 4.
        assert image_metrics.accuracy_zero_fn(self.SCORES, self.ANOMALOUS) == pytest.approx(5 / 6)

    def test_a_normal_tied_with_the_lowest_anomalous_is_flagged(self):
        assert image_metrics.accuracy_zero_fn([1, 2, 2], [0, 0, 1]) == pytest.approx(2 / 3)

    @pytest.mark.parametrize("levels", [None, 3], ids=["distinct", "many ties"])
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_equals_scikit_learn(self, seed, levels):
        scores, anomalous = scored_images(seed, levels=levels)
        precision, recall, _ = precision_recall_curve(anomalous, scores)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
        assert image_metrics.image_auroc(scores, anomalous) == pytest.approx(
            roc_auc_score(anomalous, scores), abs=ROUND_OFF
        )
        assert image_metrics.image_ap(scores, anomalous) == pytest.approx(
            average_precision_score(anomalous, scores), abs=ROUND_OFF
        )
        assert image_metrics.f1_max(scores, anomalous) == pytest.approx(f1.max(), abs=ROUND_OFF)

    @pytest.mark.parametrize("anomalous", [[0, 0, 0], [1, 1, 1]])
    def test_one_class_has_no_metric(self, anomalous):
        for estimate in image_metrics.image_metrics([1.0, 2.0, 3.0], anomalous).values():
            assert estimate == {"value": None, "low": None, "high": None}

    def test_refuses_scores_that_are_no_numbers(self):
        with pytest.raises(ValueError, match="finite"):
            image_metrics.image_auroc([1.0, np.nan], [0, 1])

    def test_refuses_labels_of_another_length(self):
        with pytest.raises(ValueError, match="one length"):
            image_metrics.image_auroc([1.0, 2.0], [0, 1, 1])


class TestBootstrap:
    def test_same_seed_same_interval_and_another_seed_another(self):
        scores, anomalous = scored_images(3)
        first = image_metrics.image_metrics(scores, anomalous, seed=1, bootstrap=200)
        assert image_metrics.image_metrics(scores, anomalous, seed=1, bootstrap=200) == first
        assert image_metrics.image_metrics(scores, anomalous, seed=2, bootstrap=200) != first

    def test_interval_of_auroc_agrees_with_hanley_and_mcneil(self):
        scores, anomalous = scored_images(4, n=2000)
        estimate = image_metrics.image_metrics(scores, anomalous, bootstrap=500)["image_auroc"]
        a, positives, negatives = estimate["value"], anomalous.sum(), (~anomalous).sum()
        q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
        variance = (a * (1 - a) + (positives - 1) * (q1 - a * a) + (negatives - 1) * (q2 - a * a)) / (
            positives * negatives
        )
        width = 2 * 1.96 * np.sqrt(variance)
        assert estimate["high"] - estimate["low"] == pytest.approx(width, rel=0.25)

    def test_every_replicate_has_both_classes_and_keeps_groups_whole(self):
        anomalous = np.array([0, 0, 0, 1, 1, 0, 1], dtype=bool)
        groups = ["a", "a", "b", "c", "c", "d", "d"]
        for weights in image_metrics.resample(anomalous, groups, seed=0, replicates=100):
            assert weights[anomalous].sum() > 0
            assert weights[~anomalous].sum() > 0
            assert weights[0] == weights[1]
            assert weights[3] == weights[4]
            assert weights[5] == weights[6]

    def test_copies_in_one_group_do_not_narrow_the_interval(self):
        scores, anomalous = scored_images(5, n=60)
        alone = image_metrics.image_metrics(scores, anomalous, bootstrap=500)["image_auroc"]
        groups = [str(i) for i in range(60)] * 9
        copied = image_metrics.image_metrics(np.tile(scores, 9), np.tile(anomalous, 9), groups, bootstrap=500)
        as_if_independent = image_metrics.image_metrics(np.tile(scores, 9), np.tile(anomalous, 9), bootstrap=500)
        width = alone["high"] - alone["low"]
        assert copied["image_auroc"]["high"] - copied["image_auroc"]["low"] == pytest.approx(width, rel=0.2)
        naive = as_if_independent["image_auroc"]
        assert naive["high"] - naive["low"] < width / 2

    def test_no_interval_from_a_single_anomalous_group(self):
        estimate = image_metrics.image_metrics([1, 2, 3, 4], [0, 0, 1, 1], ["a", "b", "c", "c"])["image_auroc"]
        assert estimate == {"value": 1.0, "low": None, "high": None}


class TestRate:
    def test_rule_of_three(self):
        # No event in 100: the upper bound solves (1 - p)^100 = 0.025.
        assert image_metrics.rate(0, 100) == {"value": 0.0, "low": 0.0, "high": pytest.approx(1 - 0.025**0.01)}

    def test_nothing_observed(self):
        assert image_metrics.rate(0, 0) == {"value": None, "low": None, "high": None}


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

    def test_poisson_weights_average_one(self):
        weights = np.stack([pixel_metrics.poisson_weights(f"g{i}", 0, 200) for i in range(200)])
        assert weights.mean() == pytest.approx(1, abs=0.02)
        assert weights.var() == pytest.approx(1, abs=0.05)


def test_thinned_curve_keeps_ends_and_area():
    x = np.linspace(0, 1, 5000)
    thin_x, thin_y = ranking.thin(x, np.sqrt(x))
    assert len(thin_x) <= 200
    assert (thin_x[0], thin_y[0], thin_x[-1], thin_y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(thin_y, thin_x) == pytest.approx(2 / 3, abs=1e-3)
