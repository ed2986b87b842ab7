"""A memory of patches: the sample of them, its coreset, and distances, each by hand."""

from __future__ import annotations

import pytest
import torch

from models.parts import memory_bank
from models.parts.memory_bank import MemoryBank, PatchSample, coreset
from models.runtime import Runtime


def sample(size: int, images: torch.Tensor, batch: int) -> torch.Tensor:
    """What is kept of the patches of `images` [B, P, D] that come in batches of this size, in reverse order."""
    kept = PatchSample(size, torch.zeros(1, images.shape[2]), Runtime(seed=3))
    for positions in torch.arange(len(images)).flip(0).split(batch):
        kept.add(images[positions], positions)
    kept.all_reduce()
    return kept.patches


def test_a_sample_is_the_same_whatever_the_batches():
    images = torch.rand(20, 6, 3)
    whole = sample(30, images, 20)
    assert whole.shape == (30, 3)
    for batch in (1, 7):
        assert torch.equal(sample(30, images, batch), whole)


def test_a_sample_is_drawn_from_all_images():
    images = torch.arange(400.0).view(400, 1, 1).expand(400, 5, 1)
    drawn = sample(200, images, 16).flatten()
    # Of 2,000 patches a tenth: its mean is that of all, within four standard errors.
    assert abs(float(drawn.mean()) - 199.5) < 4 * 115.5 / 200**0.5
    assert len(drawn.unique()) > 140


def test_fewer_patches_than_asked_for_are_all_kept():
    images = torch.rand(3, 4, 2)
    kept = sample(100, images, 2)
    assert {tuple(row) for row in kept.tolist()} == {tuple(row) for row in images.flatten(0, 1).tolist()}


def test_a_coreset_takes_what_lies_furthest():
    crowd = 0.01 * torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
    far = torch.eye(4) * 10
    patches = torch.cat([crowd, far])
    chosen = coreset(patches, 5, seed=0)
    # One of the crowd, with which it begins, and the four that are like no other.
    assert chosen.tolist() == [0, 200, 201, 202, 203]


def test_a_coreset_of_copies_is_one():
    assert coreset(torch.ones(50, 3), 10, seed=0).tolist() == [0]


@pytest.mark.parametrize("chunk", [7, 1024])
def test_distances_are_those_to_the_nearest(chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_bank, "CHUNK", chunk)
    bank = MemoryBank(20, 5)
    bank.fit(torch.rand(20, 5), seed=0)
    patches = torch.rand(2, 9, 5)
    expected = 0.5 * torch.cdist(patches.double(), bank.items.double()).square().amin(2)
    torch.testing.assert_close(bank(patches).double(), expected, rtol=1e-5, atol=1e-9)


def test_of_unit_vectors_it_is_one_less_the_cosine():
    bank = MemoryBank(1, 3)
    bank.fit(torch.tensor([[1.0, 0.0, 0.0]]), seed=0)
    turned = torch.tensor([[[0.6, 0.8, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]])
    torch.testing.assert_close(bank(turned), torch.tensor([[0.4, 0.0, 2.0]]))


def test_small_distances_keep_their_digits():
    """Of 1 - cosine as a product leaves it, distances of 1e-8 are rounding alone."""
    bank = MemoryBank(1, 2)
    bank.fit(torch.tensor([[1.0, 0.0]]), seed=0)
    torch.testing.assert_close(bank(torch.tensor([[[1.0, 1e-4]]])), torch.tensor([[5e-9]]), rtol=1e-4, atol=0)


def test_items_that_lack_patches_repeat():
    bank = MemoryBank(7, 2)
    patches = torch.tensor([[0.0, 1.0], [1.0, 0.0], [5.0, 5.0]])
    bank.fit(patches, seed=0)
    assert {tuple(row) for row in bank.items.tolist()} == {tuple(row) for row in patches.tolist()}
