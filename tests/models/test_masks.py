"""SSM's masks: hidden cells tile the image, and training shows more of it in some steps."""

from __future__ import annotations

import pytest
import torch

from models.parts.masks import checkerboard_masks, disjoint_masks, training_masks

SIZE = (32, 48)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("cell", [2, 4, 8, 5])
def test_hidden_cells_of_disjoint_masks_tile_the_image_once(cell: int):
    masks = disjoint_masks(cell, 3, SIZE, torch.Generator().manual_seed(1))
    assert masks.shape == (3, 1, *SIZE)
    assert torch.equal((1 - masks).sum(0), torch.ones(1, *SIZE))
    assert float((1 - masks).mean()) == pytest.approx(1 / 3, abs=0.01)
    cells = masks[:, 0, : SIZE[0] // cell * cell, : SIZE[1] // cell * cell]
    cells = cells.unflatten(1, (-1, cell)).unflatten(3, (-1, cell))
    assert torch.equal(cells.amin((2, 4)), cells.amax((2, 4))), "a cell is hidden as a whole"


def test_a_checkerboard_and_its_complement_hide_everything_once():
    masks = checkerboard_masks(4, SIZE)
    assert torch.equal(masks.sum(0), torch.ones(1, *SIZE))
    assert masks[0, 0, 0, 0] != masks[0, 0, 0, 4] != masks[0, 0, 4, 4]


def training(number: int, size_px: tuple[int, int] = SIZE, *, uncover: bool = True) -> torch.Tensor:
    return training_masks((2, 4, 8), size_px, seeded(number), disjoint=True, uncover=uncover)


def test_training_masks_follow_their_generator():
    first, again, other = (training(seed) for seed in (5, 5, 6))
    assert first.shape == (3, 1, *SIZE)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("disjoint", [True, False])
def test_training_hides_every_pixel_once_unless_some_are_uncovered(disjoint: bool):
    for number in range(5):
        masks = training_masks((2, 4, 8), SIZE, seeded(number), disjoint=disjoint, uncover=False)
        assert len(masks) == (3 if disjoint else 2)
        assert torch.equal((1 - masks).sum(0), torch.ones(1, *SIZE))


def test_training_shows_more_of_the_image_in_some_steps():
    shown = [float(training(n).mean()) for n in range(40)]
    plain = [share for share in shown if share == pytest.approx(2 / 3, abs=0.01)]
    assert 8 < len(plain) < 32
    assert max(shown) > 0.85


def test_training_draws_every_cell_size():
    def cell_of(masks: torch.Tensor) -> int:
        """The largest whose cells are all alike."""
        grids = {cell: masks[:, 0].unflatten(1, (-1, cell)).unflatten(3, (-1, cell)) for cell in (2, 4, 8)}
        return max(cell for cell, grid in grids.items() if torch.equal(grid.amin((2, 4)), grid.amax((2, 4))))

    # Blocks of 8 px, so that what is uncovered keeps to every grid.
    assert {cell_of(training(n, (128, 128))) for n in range(20)} == {2, 4, 8}
