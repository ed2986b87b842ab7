"""How rates fall: at their shares, by half a wave, evenly to nothing."""

from __future__ import annotations

import itertools

import pytest
import torch

from models.parts.rates import cosine, linear, set_rate, steps


def test_steps_lie_at_their_shares_of_the_epochs():
    assert [steps(0.8, factor=0.1)(epoch, 10) for epoch in range(11)] == [1.0] * 8 + [0.1] * 3
    twice = [steps(0.8, 0.9, factor=0.2)(epoch, 12) for epoch in range(13)]
    assert twice == pytest.approx([1] * 10 + [0.2] + [0.04] * 2)


def test_a_rate_is_constant_for_a_tenth_then_falls_to_nothing():
    factors = [linear(0.1)(epoch, 20) for epoch in range(21)]
    assert factors[:3] == [1, 1, 1]
    assert factors[-1] == 0
    assert [a - b for a, b in itertools.pairwise(factors[2:])] == pytest.approx([1 / 18] * 18)


def test_half_a_wave():
    assert [cosine(epoch, 4) for epoch in range(5)] == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0])


def test_all_parameters_have_the_rate():
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in (1.0, 2.0)])
    set_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
