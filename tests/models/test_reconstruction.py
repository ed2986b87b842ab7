"""What reconstructing detectors share, and what a learner keeps."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from detectorkit import batches, build
from textures import textures

from models.detector import Learner
from models.parts.reconstruction import rebuild
from models.runtime import Runtime

SIZE = (32, 48)
# With one phase that trains, the first.
OPTIONS: dict[str, dict[str, Any]] = {"ssm": {"width": 2, "grid": 0}, "autoencoder": {"width": 2}}


def test_networks_take_and_give_images_between_minus_one_and_one():
    seen = []

    class Half(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x / 2

    assert rebuild(Half(), torch.tensor([0.0, 0.5, 1.0])).tolist() == [0.25, 0.5, 0.75]
    assert seen[0].tolist() == [-1, 0, 1]


def learner(kind: str, epochs: int) -> Learner:
    return build(kind, SIZE, epochs=epochs, **OPTIONS[kind]).learner(Runtime())


def rates(learner: Learner) -> list[float]:
    """The rate of each epoch of the training phase and that after the last, as shares of the first."""
    phase = learner.phases[0]
    (batch,) = batches(textures(4, *SIZE), 4)
    learner.start(phase.name)
    found = [learner.state_dict()["optimizer"]["param_groups"][0]["lr"]]
    for _ in range(phase.epochs):
        learner.step(batch)
        learner.end_epoch()
        found += [learner.state_dict()["optimizer"]["param_groups"][0]["lr"]]
    return [rate / found[0] for rate in found]


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_rate_of_a_learner_falls_by_its_schedule(kind: str):
    assert rates(learner(kind, 5)) == pytest.approx([1] * 4 + [0.1] * 2)


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_learner_goes_on_where_its_state_was_kept(kind: str):
    data = batches(textures(8, *SIZE), 4)
    one, other = (learner(kind, 3) for _ in range(2))
    name = one.phases[0].name
    one.start(name)
    other.start(name)
    for batch in data:
        one.step(batch)
    one.end_epoch()
    buffer = io.BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for each in (one, other):
        each.end_epoch()
    for batch in data:
        first, second = one.step(batch), other.step(batch)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[term], second[term]) for term in first)
