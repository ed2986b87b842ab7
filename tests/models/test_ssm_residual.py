"""SSM on what a linear guess leaves: what the network begins from, learns, and must not see."""

from __future__ import annotations

import pytest
import torch
from detectorkit import batches, build, run_fit
from ssmkit import hidden_error
from textures import textures, with_defects
from torch import Tensor

from models.errors import ConfigError
from models.parts.masks import checkerboard_masks
from models.ssm_residual import ResidualSSM

SIZE = (32, 48)


def residual(size_px: tuple[int, int] = SIZE, **options: object) -> ResidualSSM:
    torch.manual_seed(0)
    detector = build("ssm_residual", size_px, **({"width": 4, "epochs": 1, "batch_size": 4, "grid": 0} | options))
    assert isinstance(detector, ResidualSSM)
    return detector


def test_it_begins_from_the_linear_guess_as_it_is():
    detector = residual()
    guesses = textures(2, *SIZE)
    with torch.no_grad():
        assert torch.equal(detector.paint(guesses, torch.ones(2, 1, *SIZE))[0], guesses)


def test_hidden_pixels_do_not_reach_the_network():
    detector = residual()
    run_fit(detector, batches(textures(8, *SIZE), 4), batches(textures(2, *SIZE, seed=4), 2))
    mask, image = checkerboard_masks(8, SIZE)[0], textures(1, *SIZE)

    def painted(seen: Tensor) -> Tensor:
        with torch.no_grad():
            return (detector.paint(detector.guess(seen, mask), mask.unsqueeze(0))[0] * (1 - mask)).float()

    assert torch.equal(painted(image), painted(torch.where(mask > 0, image, 1 - image)))
    assert not torch.equal(painted(image), painted(torch.where(mask > 0, 1 - image, image)))


def test_after_one_epoch_it_paints_in_what_is_hidden_twice_as_well_as_the_mean_does():
    train, other = textures(24, *SIZE), textures(8, *SIZE, seed=7)
    detector = residual(lr=5e-3, mirrored=False)
    run_fit(detector, batches(train, 4), batches(textures(2, *SIZE, seed=4), 2))
    assert hidden_error(detector, other) < 0.5 * float((other - train.mean(0)).square().mean())


def bent(count: int, seed: int) -> Tensor:
    """Quarters of one brightness each, [B, 3, 32, 32]: two by chance, and two by how far those are from grey.

    So nothing of one follows linearly from the others.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(2, count, generator=generator) * 2 - 1).unbind()
    quarters = torch.stack([2 * a.abs() - 1, a, b, 2 * b.abs() - 1], 1).view(count, 1, 2, 2) * 0.4 + 0.5
    whole = quarters.repeat_interleave(16, 2).repeat_interleave(16, 3).expand(-1, 3, -1, -1)
    return whole + 0.02 * torch.randn(whole.shape, generator=generator)


def test_the_network_learns_what_does_not_follow_linearly():
    detector = residual((32, 32), epochs=20, lr=5e-3, cells_across=(2,), mirrored=False)
    run_fit(detector, batches(bent(64, 0), 8), batches(bent(8, 1), 8))
    images, mask = bent(16, 2), detector.masks[0, 0]
    with torch.no_grad():
        guess = detector.guess(images, mask)
        painted, _ = detector.paint(guess, mask.expand(16, 1, -1, -1))
    guessed, learned = (float(((found - images).square() * (1 - mask)).mean()) for found in (guess, painted))
    assert guessed > 0.02
    assert learned < 0.7 * guessed


def test_one_image_is_enough_to_fit_on():
    """There is no other half of the images for its guess to come from."""
    detector = residual()
    run_fit(detector, batches(textures(1, *SIZE), 4), batches(textures(1, *SIZE, seed=4), 2))
    assert detector.score(textures(2, *SIZE)).image.isfinite().all()


def test_refinement_uncovers_what_is_normal_and_hides_the_defect():
    detector = residual(refine="joint")
    run_fit(detector, batches(textures(24, *SIZE), 8), batches(textures(3, *SIZE, seed=4), 3))
    normal = textures(3, *SIZE, seed=1)
    bad, masks = with_defects(normal)

    def uncovered(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack([detector.refined(x[None], detector.first_errors(x[None]))[1] for x in images])

    assert float(uncovered(normal).mean()) > 0.5
    assert float(uncovered(bad)[masks].mean()) < 0.1


def test_images_too_large_for_a_linear_guess_are_refused():
    with pytest.raises(ConfigError, match=r"up to 4096 pixels.*Got: 64x80\. Choose --set grid=32, or the detector ssm"):
        residual((64, 80))
