"""What adversarial translation is made of: published sizes, verdicts, a buffer that forgets slowly, and a schedule."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.parts.adversarial import Discriminator, Generator, ReplayBuffer, is_fake, is_real


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (lambda: Generator(3, 64, 9), 11_378_179),
        (lambda: Generator(1, 64, 9), 11_365_633),
        (lambda: Generator(3, 64, 6), 7_837_699),
        (lambda: Generator(3, 16, 3), 272_515),
        (lambda: Discriminator(3, 64), 2_764_737),
        (lambda: Discriminator(3, 16), 175_089),
    ],
)
def test_parameters_are_the_published_ones(network, parameters: int):
    with torch.device("meta"):
        assert count(network()) == parameters


def test_outputs_have_the_published_shapes():
    judge = Discriminator(1, 2)
    assert judge(torch.zeros(1, 1, 256, 256)).shape == (1, 1, 30, 30)
    assert judge(torch.zeros(1, 1, 64, 64)).shape == (1, 1, 6, 6)
    made = Generator(3, 2, 1)(torch.randn(2, 3, 64, 32))
    assert made.shape == (2, 3, 64, 32)
    assert made.abs().max() < 1


def test_least_squares_verdicts():
    assert is_real(torch.tensor([1.0, 0.5, 0.0])).tolist() == [0, 0.25, 1]
    assert is_fake(torch.tensor([1.0, 0.5, 0.0])).tolist() == [1, 0.25, 0]


def test_a_buffer_keeps_fifty_without_graph_and_swaps_half_of_the_time():
    buffer, generator = ReplayBuffer(), torch.Generator().manual_seed(0)
    images = torch.arange(400.0).view(-1, 1, 1, 1).requires_grad_()
    first = buffer.exchange(images[:50], generator)
    assert torch.equal(first, images[:50])
    later = buffer.exchange(images[50:], generator)
    assert len(buffer.images) == 50
    assert not any(image.requires_grad for image in [*buffer.images, first, later])
    old = (later != images[50:].detach()).float().mean()
    assert 0.4 < float(old) < 0.6
    assert len({float(image) for image in buffer.images}) == 50
    assert any(float(image) >= 200 for image in buffer.images)
    kept = {float(image) for image in buffer.images}
    drawn = [float(image) for image in buffer.draw(1000, generator)]
    assert len(drawn) == 1000
    # One of fifty is missing once in ten million.
    assert set(drawn) == kept
    assert {float(image) for image in buffer.images} == kept
