"""Lesions: drawn inside the brain, marked by their mask, and not to be found by brightness alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from ad_jobs.phantom.anatomy import Head, draw_slice
from ad_jobs.phantom.lesions import KINDS, add_lesion
from ad_jobs.phantom.scanners import SCANNERS, acquire


@pytest.mark.parametrize("seed", range(6))
def test_a_lesion_changes_its_mask_and_nothing_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    healthy = draw_slice(Head.draw(rng), 0.3, 96, 88, rng)
    lesion = add_lesion(healthy, rng)
    change = np.abs(lesion.signal - healthy.signal)
    near = ndimage.binary_dilation(lesion.mask, iterations=round(0.17 * 48) + 3)
    assert change[~near].max() == 0
    assert change[lesion.mask].mean() > 0.04
    assert lesion.kind in KINDS
    # It stays inside the brain.
    assert change[healthy.brain == 0].max() == 0


def test_lesions_are_not_found_by_brightness_alone() -> None:
    rng = np.random.default_rng(11)
    pictures, truth = [], np.arange(160) % 2
    for index, anomalous in enumerate(truth):
        scanner = SCANNERS[(index // 2) % len(SCANNERS)]
        healthy = draw_slice(Head.draw(rng), rng.uniform(0, 0.8), 80, 80, rng)
        signal = add_lesion(healthy, rng).signal if anomalous else healthy.signal
        stored = acquire(signal, scanner, rng).stored.astype(float)
        pictures.append((4095 - stored if scanner.photometric == "MONOCHROME1" else stored) / scanner.gain)
    flat = np.array(pictures).reshape(len(truth), -1)
    simple = [flat.max(1), flat.mean(1), flat.std(1), *np.percentile(flat, [50, 90, 95, 98, 99, 99.5], axis=1)]
    simple += [(flat > level).mean(1) for level in np.linspace(0.1, 1.0, 10)]
    aurocs = [roc_auc_score(truth, values) for values in simple]
    assert max(max(value, 1 - value) for value in aurocs) < 0.9
