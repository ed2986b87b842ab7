"""Gaussians per position: sums that add up, Mahalanobis distances, and scales that a few images cannot fool."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.parts.gaussian import GaussianBank, GaussianSums, PositionScale, sums_of
from models.parts.patch_features import average_patches

P, D = 5, 4


def features(count: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((P, D, D))
    return torch.from_numpy(np.einsum("bpd,pde->bpe", rng.standard_normal((count, P, D)), mix) + 3.0).float()


def sums(x: torch.Tensor) -> GaussianSums:
    found = GaussianSums(P, D)
    for part in x.split(7):
        found.add(part)
    return found


def test_mean_and_covariance_are_the_samples():
    x = features(40)
    found = sums(x)
    for p in range(P):
        np.testing.assert_allclose(found.mean()[p], x[:, p].double().mean(0), rtol=1e-10)
        np.testing.assert_allclose(found.covariance()[p], np.cov(x[:, p].double().numpy().T), rtol=1e-8, atol=1e-10)


def test_sums_of_two_workers_are_those_of_all():
    x = features(40)
    whole, one, other = sums(x), sums(x[:13]), sums(x[13:])
    queue = [other.count, other.total_PD, other.outer_PDD]
    one.all_reduce(lambda mine: mine + queue.pop(0))
    torch.testing.assert_close(one.covariance(), whole.covariance())
    torch.testing.assert_close(one.mean(), whole.mean())


def test_sums_continue_from_a_checkpoint():
    x = features(20)
    half = GaussianSums(P, D)
    half.add(x[:8])
    again = GaussianSums(P, D)
    again.load_state_dict({name: tensor.clone() for name, tensor in half.state_dict().items()})
    again.add(x[8:])
    torch.testing.assert_close(again.covariance(), sums(x).covariance())


def test_distances_are_those_of_the_direct_inverse():
    x, new = features(60), features(9, seed=1)
    bank, found = GaussianBank(P, D), sums(x)
    bank.fit(found, 0.01)
    variance = np.mean([np.diag(np.cov(x[:, p].double().numpy().T)) for p in range(P)])
    for p in range(P):
        inverse = np.linalg.inv(np.cov(x[:, p].double().numpy().T) + 0.01 * variance * np.eye(D))
        centred = new[:, p].double().numpy() - x[:, p].double().numpy().mean(0)
        expected = np.sqrt(np.einsum("bd,de,be->b", centred, inverse, centred))
        np.testing.assert_allclose(bank.distance(new)[:, p], expected, rtol=1e-4)


def test_the_ridge_does_not_hang_on_the_features_scale():
    x, new = features(60), features(9, seed=1)
    banks = []
    for scale in (1.0, 1000.0):
        bank = GaussianBank(P, D)
        bank.fit(sums(scale * x), 0.1)
        banks.append(bank.distance(scale * new))
    torch.testing.assert_close(*banks, rtol=1e-3, atol=1e-4)


def test_fewer_images_than_dimensions_and_constant_features_are_solvable():
    for x in (features(3), torch.ones(6, P, D)):
        bank = GaussianBank(P, D)
        bank.fit(sums(x), 0.01)
        assert bool(torch.isfinite(bank.distance(features(4, seed=1))).all())


def test_positions_that_vary_more_count_less_and_levels_come_to_zero_and_one():
    rng = torch.Generator().manual_seed(0)
    loud = torch.tensor([1.0, 1.0, 1.0, 1.0, 5.0])
    train = 10 + loud * torch.randn(500, P, generator=rng)
    held_out = 12 + loud * torch.randn(300, P, generator=rng)
    scale = PositionScale(P)
    scale.fit_positions(sums_of(train))
    scaled = scale(train)
    assert scaled.std(0)[:4].tolist() == pytest.approx([1.0] * 4, rel=0.15)
    assert float(scaled.std(0)[4]) == pytest.approx(1.0, rel=0.15)
    scale.fit_level(sums_of(scale(held_out)))
    again = scale(held_out)
    assert float(again.mean()) == pytest.approx(0, abs=1e-3)
    assert float(again.std()) == pytest.approx(1, abs=0.01)


def test_one_images_position_is_drawn_towards_all():
    scale = PositionScale(P)
    scale.fit_positions(sums_of(torch.tensor([[1.0, 2, 3, 4, 90]])))
    assert float(scale.mean[4]) < 40
    assert bool((scale.spread > 0).all())
    flat = PositionScale(P)
    flat.fit_positions(sums_of(torch.ones(4, P)))
    assert bool(torch.isfinite(flat(torch.ones(2, P))).all())


@pytest.mark.parametrize("patch", [1, 2, 3, 5])
def test_patches_are_means_of_what_lies_within_the_map(patch: int):
    x = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    found = average_patches(x, patch)
    assert found.shape == x.shape
    for row in range(6):
        for column in range(7):
            top, left = row - patch // 2, column - patch // 2
            around = x[..., max(0, top) : top + patch, max(0, left) : left + patch].mean((2, 3))
            torch.testing.assert_close(found[..., row, column], around)
