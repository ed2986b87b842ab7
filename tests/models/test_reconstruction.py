"""What reconstructing detectors share: the rate's schedule, scores of maps, and what a learner keeps."""

from __future__ import annotations

import io

import pytest
import torch
from detectorkit import batches, build
from textures import textures

from models.detector import Learner
from models.parts.reconstruction import Decay, image_scores, rebuild
from models.runtime import Runtime

SIZE = (32, 48)


def test_the_rate_falls_at_its_shares_of_the_epochs():
    assert [Decay((0.8,), 0.1).rate(1.0, epoch, 10) for epoch in range(11)] == [1.0] * 8 + [0.1] * 3
    twice = [Decay((0.8, 0.9), 0.2).rate(1e-3, epoch, 12) for epoch in range(13)]
    assert twice == pytest.approx([1e-3] * 10 + [2e-4] + [4e-5] * 2)


def test_a_map_is_scored_by_its_maximum_or_its_mean():
    maps = torch.tensor([[[0.0, 1.0], [0.0, 3.0]], [[2.0, 2.0], [2.0, 2.0]]])
    assert image_scores(maps, "max").tolist() == [3, 2]
    assert image_scores(maps, "mean").tolist() == [1, 2]


def test_networks_take_and_give_images_between_minus_one_and_one():
    seen = []

    class Half(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x / 2

    assert rebuild(Half(), torch.tensor([0.0, 0.5, 1.0])).tolist() == [0.25, 0.5, 0.75]
    assert seen[0].tolist() == [-1, 0, 1]


def rates(learner: Learner) -> list[float]:
    """The rate of each epoch of the training phase, and that after the last."""
    phase = learner.phases[0]
    (batch,) = batches(textures(4, *SIZE), 4)
    learner.start(phase.name)
    found = [learner.state_dict()["optimizer"]["param_groups"][0]["lr"]]
    for _ in range(phase.epochs):
        learner.step(batch)
        learner.end_epoch()
        found += [learner.state_dict()["optimizer"]["param_groups"][0]["lr"]]
    return found


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("ssm", [1e-3] * 4 + [1e-4] * 2), ("autoencoder", [1e-3] * 4 + [1e-4] * 2), ("pmad", [1e-3] * 4 + [2e-4, 4e-5])],
)
def test_each_detector_has_its_schedule(kind: str, expected: list[float]):
    learner = build(kind, SIZE, width=2, epochs=5).learner(Runtime())
    assert rates(learner) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["ssm", "autoencoder", "pmad"])
def test_a_learner_goes_on_where_its_state_was_kept(kind: str):
    data = batches(textures(8, *SIZE), 4)
    one, other = (build(kind, SIZE, width=2, epochs=3).learner(Runtime()) for _ in range(2))
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
    for learner in (one, other):
        learner.end_epoch()
    for batch in data:
        first, second = one.step(batch), other.step(batch)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[term], second[term]) for term in first)
