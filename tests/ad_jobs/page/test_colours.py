"""The colours of a heatmap: even in lightness, transparent where it is cold."""

import numpy as np

from ad_jobs.page import colours


def test_lightness_rises_evenly():
    rgb = colours.table().astype(float) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = linear @ np.array([0.2126, 0.7152, 0.0722])
    lightness = np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)
    steps = np.diff(lightness)
    assert steps.min() > 0
    # Rounding to 8 bits moves a dark colour by about half a step.
    assert np.abs(lightness - np.linspace(lightness[0], lightness[-1], 256)).max() < 0.6


def test_cold_is_transparent_and_hot_is_not():
    pixels = colours.overlay(np.array([[0.0, colours.COLD, 0.5, colours.WARM, 1.0]]))
    alpha = pixels[0, :, 3].astype(int)
    assert (alpha[0], alpha[1], alpha[3], alpha[4]) == (0, 0, 255, 255)
    assert 0 < alpha[2] < 255
