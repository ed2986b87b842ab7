"""Batch norm over workers: PyTorch's own on the whole batch, whatever share of it lies on a rank."""

from __future__ import annotations

import pytest
import torch
from workerkit import Passed, Workers, normalise

TOLERANCE = {"rtol": 1e-7, "atol": 1e-7}  # raw squares of such images have four digits of their variance


@pytest.mark.parametrize("count", [7, 2])  # shares of 3, 2 and 2 images; one rank without any
@pytest.mark.parametrize(("affine", "momentum"), [(True, 0.1), (False, None)])
def test_three_ranks_normalise_as_one_process(three: Workers, count: int, affine: bool, momentum: float | None):
    generator = torch.Generator().manual_seed(count)
    images = 1e6 + torch.randn(count, 5, 3, 4, generator=generator, dtype=torch.float64)
    (whole,) = three.run(1, normalise, images, affine, momentum)
    ranks = three.run(3, normalise, images, affine, momentum)
    assert isinstance(whole, Passed), whole
    for rank, found in enumerate(ranks):
        assert isinstance(found, Passed), found
        torch.testing.assert_close(found.out, whole.out[rank::3], **TOLERANCE)
        torch.testing.assert_close(found.to_images, whole.to_images[rank::3], **TOLERANCE)
        for ours, theirs in zip(found.running, whole.running, strict=True):
            torch.testing.assert_close(ours, theirs, **TOLERANCE)
    if affine:  # each rank has its own images' part, as of any other weight
        for name in ("to_weight", "to_bias"):
            total = sum(getattr(found, name) for found in ranks)
            torch.testing.assert_close(total, getattr(whole, name), **TOLERANCE)
