"""The loop of one worker: what shares it takes, and that it goes on from any state it saved."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from detectorkit import build
from numpy.typing import NDArray
from textures import textures

from ad_jobs.fitting.loop import Batches, State, train
from models.detector import Batch
from models.runtime import Runtime

SIZE = (32, 48)
COUNT, HELD_OUT = 11, 4


class InMemory:
    """Textures as they come from a source; notes what was read."""

    def __init__(self, count: int, seed: int) -> None:
        self._pixels = np.rint(textures(count, *SIZE, seed=seed).numpy() * 65535).astype(np.uint16)
        self.asked: list[int] = []

    def read(self, positions: Sequence[int]) -> Iterator[NDArray[np.uint16]]:
        self.asked += positions
        for position in positions:
            yield self._pixels[position]


def batches_of(kind: str, rank: int = 0, world: int = 1, **options: Any) -> tuple[Any, Batches]:
    """A detector and the batches of its fit on one rank."""
    torch.manual_seed(0)
    detector = build(kind, SIZE, **({"batch_size": 4} | options))
    positions = {"train": list(range(HELD_OUT, COUNT + HELD_OUT)), "held_out": list(range(HELD_OUT))}
    anomalous = InMemory(6, seed=9) if detector.spec.needs_anomalous else None
    runtime = Runtime(rank=rank, world=world, seed=3)
    normal = InMemory(COUNT + HELD_OUT, seed=1)
    return detector, Batches(detector, runtime, normal, positions, anomalous, range(6) if anomalous else ())


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("kind", ["mkd", "cyclegan"])
def test_the_shares_of_all_ranks_are_the_batches_of_one(kind: str, world: int):
    for images in ("train", "held_out"):
        (whole,) = (list(batches_of(kind)[1].epoch(0, 2, images)) for _ in range(1))
        ranks = [list(batches_of(kind, rank, world)[1].epoch(0, 2, images)) for rank in range(world)]
        assert [batch.total for batch in whole] == [len(batch.images) for batch in whole]
        for number, batch in enumerate(whole):
            shares = [rank[number] for rank in ranks]
            assert {share.total for share in shares} == {len(batch.images)}
            for rank, share in enumerate(shares):
                assert torch.equal(share.images, batch.images[rank::world])
                assert torch.equal(share.positions, batch.positions[rank::world])
                if kind == "cyclegan" and images == "train":
                    assert torch.equal(share.anomalous, batch.anomalous[rank::world])
                else:
                    assert share.anomalous is None


def test_a_small_last_batch_reaches_every_rank_though_some_get_no_image():
    last = [list(batches_of("mkd", rank, 5)[1].epoch(0, 0, "train"))[-1] for rank in range(5)]
    # 11 images: 4, 4, 3.
    assert [len(batch.images) for batch in last] == [1, 1, 1, 0, 0]
    assert all(batch.images.shape[1:] == (3, *SIZE) for batch in last)


def test_orders_follow_from_seed_phase_and_epoch_and_leave_no_image_out():
    def order(phase: int, epoch: int, images: str = "train") -> list[int]:
        _, batches = batches_of("mkd")
        found = torch.cat([batch.positions for batch in batches.epoch(phase, epoch, images)]).tolist()
        assert sorted(found) == list(range(COUNT if images == "train" else HELD_OUT))
        return found

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*place)) for place in ((0, 0), (0, 1), (1, 0))}) == 3
    order(1, 0, "held_out")


def test_held_out_images_are_read_in_their_own_phases_alone():
    _, batches = batches_of("pmad")
    list(batches.epoch(0, 0, "train"))
    assert min(batches._normal.asked) == HELD_OUT
    batches._normal.asked.clear()
    list(batches.epoch(1, 0, "held_out"))
    assert sorted(batches._normal.asked) == list(range(HELD_OUT))


def saved(state: State) -> State:
    """A state as it comes from a checkpoint."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def run(state: State | None = None, **options: Any) -> tuple[list[State], list[str]]:
    """A fit of PMAD; the states it saved, and what it said."""
    detector, batches = batches_of("pmad", latent=16, partitions=2, items=6, epochs=18, **options)
    states: list[State] = []
    said: list[str] = []
    learner = detector.learner(Runtime(seed=3))
    train(detector, learner, batches, save=lambda s: states.append(saved(s)), say=said.append, state=state)
    return states, said


def test_a_fit_goes_on_from_each_state_to_the_same_end():
    states, said = run()
    assert [(s["phase"], s["epoch"]) for s in states] == [(1, epoch) for epoch in range(3, 18, 3)] + [(5, 0)]
    end = states[-1]
    assert [(row["phase"], row["epoch"]) for row in end["curve"]] == [
        ("centre", 1),
        *(("rebuild", epoch) for epoch in range(1, 19)),
        *((phase, 1) for phase in ("range", "modes", "choose")),
    ]
    assert any(line.startswith("rebuild, epoch 1 of 18: loss ") for line in said)
    for state in states[::3]:
        again, said = run(copy.deepcopy(state))
        assert said[0] == f"Continued from epoch {state['epoch']} of 18 (rebuild)."
        assert again[-1]["curve"] == end["curve"]
        for name, tensor in end["detector"].items():
            assert torch.equal(tensor, again[-1]["detector"][name]), name


def test_a_fit_that_had_ended_trains_no_more():
    states, _ = run()
    again, said = run(copy.deepcopy(states[-1]))
    assert len(again) == 1
    assert said == ["Continued from the end of the training."]
    assert again[0]["curve"] == states[-1]["curve"]


def test_reported_losses_are_means_over_an_epochs_steps(monkeypatch: pytest.MonkeyPatch):
    detector, batches = batches_of("pmad", latent=16, partitions=2, items=6, epochs=1)
    learner = detector.learner(Runtime())
    given = iter([1.0, 2.0, 6.0])

    def step(batch: Batch) -> dict[str, torch.Tensor]:
        del batch
        return {"loss": torch.tensor(next(given))} if learner.phase == "rebuild" else {}

    monkeypatch.setattr(learner, "step", step)
    monkeypatch.setattr(learner, "finish", lambda _: None)
    states: list[State] = []
    train(detector, learner, batches, save=states.append, say=lambda _: None)
    assert states[-1]["curve"][1] == {"phase": "rebuild", "epoch": 1, "loss": 3.0}
