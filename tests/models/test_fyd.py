"""FYD: PaDiM in the aligned frame, losses by their definitions, and alignment that undoes a known movement."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectorkit import batches, build, run_fit, run_phase
from safetensors.torch import save_file
from textures import textures, with_defects

from models import registry
from models.errors import ConfigError, WeightsError
from models.fyd import FYD
from models.padim import PaDiM
from models.parts.agreement import agreement_loss, alignment_loss, consistency_loss, drift_loss
from models.parts.stn import random_movements, warp
from models.runtime import Runtime

SIZE = (64, 96)
RANDOM = {"backbone": "resnet18", "weights": "random", "layers": (2, 3), "batch_size": 4}


def fyd(size_px: tuple[int, int] = SIZE, **options: object) -> FYD:
    torch.manual_seed(0)
    detector = build("fyd", size_px, **(RANDOM | options))
    assert isinstance(detector, FYD)
    return detector


# --- The method


def test_it_aligns_images_by_default():
    config = registry.configure("fyd", {})
    assert (config.align_image, config.align_stages, config.contrast) == (True, False, False)


@pytest.mark.parametrize(
    ("switches", "phases"),
    [
        ({}, ["align"]),
        ({"align_image": False, "align_stages": True}, ["contrast"]),
        ({"align_image": False, "contrast": True}, ["contrast"]),
        ({"align_stages": True, "contrast": True}, ["align", "contrast"]),
    ],
)
def test_phases_follow_what_is_switched_on(switches: dict[str, bool], phases: list[str]):
    found = [phase.name for phase in fyd(**switches).learner(Runtime()).phases]
    assert found == [*phases, "statistics", "scale", "level", *(["choose"] if "align" in phases else [])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"align_image": False},
            r"fyd aligns images or their features\. Got: align_image=false, .*Choose --detector padim",
        ),
        (
            {"align_image": False, "contrast": True, "align_epochs": 9},
            r"align_epochs counts where align_image is on\. Got: align_epochs=9",
        ),
        ({"epochs": 9}, r"epochs counts where align_stages or contrast is on\. Got: epochs=9\. Leave it out"),
        ({"lr": 0.1}, r"lr counts where .* Got: lr=0\.1"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(options: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        registry.configure("fyd", options)


def test_identity_transformers_change_nothing():
    """New, and aligned by the identity: the maps of PaDiM with the same weights."""
    images = textures(3, *SIZE)
    detector = fyd()
    plain = build("padim", SIZE, **RANDOM)
    assert isinstance(plain, PaDiM)
    plain.backbone.load_state_dict(detector.trunk.backbone.state_dict())
    plain.gaussians.load_state_dict(detector.gaussians.state_dict())
    expected = plain.score(images).heatmap
    torch.testing.assert_close(detector.score(images).heatmap, expected, rtol=1e-2, atol=2e-2 * float(expected.max()))


def test_a_defect_stands_out_where_it_is():
    detector = fyd(
        (64, 64), backbone="efficientnet_lite0", weights="auto", layers=(2, 3, 4), align_epochs=4, batch_size=8
    )
    run_fit(detector, batches(textures(24, 64, 64), 8), batches(textures(8, 64, 64, seed=4), 4))
    normal = textures(8, 64, 64, seed=1)
    bad, masks = with_defects(normal)
    found = detector.score(bad)
    assert found.image.min() > detector.score(normal).image.max()
    assert sum(bool(h[m].mean() > h[~m].mean()) for h, m in zip(found.heatmap, masks, strict=True)) == 8


# --- Losses


def test_alignment_loss_is_the_mean_distance_of_pairs():
    images = textures(4, 8, 12)
    pairs = [
        (images[i] - images[j]).square().sum(0).add(1e-8).sqrt().mean() for i in range(4) for j in range(4) if i != j
    ]
    assert float(alignment_loss(images)) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-5)
    same = images[:1].repeat(3, 1, 1, 1).requires_grad_()
    loss = alignment_loss(same)
    assert float(loss.detach()) == pytest.approx(1e-4, rel=1e-3)
    loss.backward()
    assert bool(torch.isfinite(same.grad).all())


def test_agreement_in_one_sum_is_the_double_loop():
    predicted, projected = torch.randn(5, 6, 3, 4), torch.randn(5, 6, 3, 4)
    terms = [
        -F.cosine_similarity(predicted[a], projected[b], dim=0).mean() for a in range(5) for b in range(5) if a != b
    ]
    assert float(agreement_loss(predicted, projected)) == pytest.approx(float(torch.stack(terms).mean()), abs=1e-6)
    alike = torch.randn(1, 6, 3, 4).repeat(4, 1, 1, 1)
    assert float(agreement_loss(alike, alike)) == pytest.approx(-1, abs=1e-6)


def test_projections_are_targets_without_gradient():
    predicted, projected = (torch.randn(3, 4, 2, 2, requires_grad=True) for _ in range(2))
    agreement_loss(predicted, projected).backward()
    assert predicted.grad is not None
    assert projected.grad is None


# --- Training


def bars(count: int, spread_deg: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Bright bars with one thick end, at random angles; images [N, 3, 32, 32] and angles in degrees."""
    rng = torch.Generator().manual_seed(seed)
    angles = (2 * torch.rand(count, generator=rng) - 1) * spread_deg
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    found = []
    for angle in torch.deg2rad(angles):
        along, across = (x * torch.cos(angle) + y * torch.sin(angle), y * torch.cos(angle) - x * torch.sin(angle))
        width = 0.12 + 0.16 * (along > 0.3)
        inside = torch.sigmoid(20 * (width - across.abs())) * torch.sigmoid(20 * (0.75 - along.abs()))
        found.append(inside.expand(3, -1, -1))
    return torch.stack(found), angles


def angle_after(detector: FYD, images: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        _, transform = detector.align(images)
    return angles - torch.rad2deg(torch.atan2(transform[:, 1, 0], transform[:, 0, 0]))


def test_alignment_brings_objects_to_one_angle():
    images, angles = bars(64, 25.0)
    detector = fyd((32, 32), layers=(2,), align_epochs=40, batch_size=16, width=16)
    losses = run_phase(detector.learner(Runtime()), "align", batches(images, 16))
    detector.eval()
    assert losses[-1]["loss"] < 0.7 * losses[0]["loss"]
    assert float(angles.std()) > 13
    assert float(angle_after(detector, images, angles).std()) < 4


def test_alignment_undoes_a_shift_of_a_fifth_of_the_side():
    """Squares up to 20 % of a side away from the middle: how far apart they lie when each is seen aligned."""
    rng = torch.Generator().manual_seed(0)
    shifts = (2 * torch.rand(64, 2, generator=rng) - 1) * 0.2
    moved = torch.eye(3).repeat(64, 1, 1)
    moved[:, :2, 2] = -2 * shifts
    square = torch.zeros(1, 3, 32, 32)
    square[..., 12:20, 12:20] = 1
    images = warp(square.expand(64, -1, -1, -1), moved, padding="border")
    detector = fyd((32, 32), layers=(2,), align_epochs=60, batch_size=16, width=16)
    run_phase(detector.learner(Runtime()), "align", batches(images, 16))
    with torch.no_grad():
        _, transform = detector.eval().align(images)
    # Where the aligned image shows the square's middle: the shift that the transform leaves.
    middle = torch.cat([2 * shifts, torch.ones(64, 1)], 1).unsqueeze(2)
    left = (torch.linalg.inv(transform) @ middle)[:, :2, 0] / 2
    assert float((left - left.mean(0)).norm(dim=1).median()) < 0.25 * float(shifts.norm(dim=1).median())


def outlines(count: int, seed: int = 0) -> torch.Tensor:
    """Rings in the shape of an egg, with a line along the middle, of other sizes and brightness each [N, 3, 32, 32]."""
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    found = []
    for wide, high, ring, inside, line in torch.rand(count, 5, generator=rng):
        radius = torch.hypot(x * (1 + 0.3 * y) / (0.45 + 0.1 * wide), y / (0.62 + 0.1 * high))
        image = (0.2 + 0.6 * inside) * torch.sigmoid(20 * (0.9 - radius))
        image += (0.3 + 0.7 * ring) * torch.exp(-(((radius - 1) / 0.12) ** 2))
        image += (line - 0.5) * torch.exp(-((x / 0.06) ** 2)) * (radius < 0.8)
        found.append(image.clamp(0, 1).expand(3, -1, -1))
    return torch.stack(found)


def test_alignment_undoes_known_movements():
    """Copies of an image, turned by up to 20 degrees and shifted by up to a tenth, are seen in one frame."""
    rng = torch.Generator().manual_seed(1)
    images = warp(outlines(64), random_movements(64, rng, max_angle_deg=20, max_shift=0.1, aspect=1.0))
    detector = fyd((32, 32), layers=(2,), align_epochs=20, batch_size=16, width=16)
    run_phase(detector.learner(Runtime()), "align", batches(images, 16))
    detector.eval()
    unseen = outlines(64, seed=2)
    moved = [random_movements(64, rng, max_angle_deg=20, max_shift=0.1, aspect=1.0) for _ in range(2)]
    with torch.no_grad():
        first, second = (movement @ detector.align(warp(unseen, movement))[1] for movement in moved)
    left = torch.linalg.inv(first) @ second
    angle_deg = torch.rad2deg(torch.atan2(left[:, 1, 0], left[:, 0, 0])).abs()
    assert float(angle_deg.median()) <= 2
    assert float(left[:, :2, 2].norm(dim=1).median()) / 2 <= 0.02


def test_copies_that_are_seen_alike_cost_nothing():
    movement = random_movements(6, torch.Generator().manual_seed(0), max_angle_deg=20, max_shift=0.1, aspect=1.5)
    assert float(consistency_loss(movement @ torch.linalg.inv(movement), torch.eye(3).repeat(6, 1, 1))) < 1e-10
    turned = random_movements(1, torch.Generator().manual_seed(0), max_angle_deg=20, max_shift=0, aspect=1.0)
    angle = torch.atan2(turned[0, 1, 0], turned[0, 0, 0])
    # |R(a) - 1|^2 = 4 - 4 cos a
    assert float(consistency_loss(turned, torch.eye(3)[None])) == pytest.approx(float(4 - 4 * angle.cos()), abs=1e-6)
    opposite = torch.cat([turned, torch.linalg.inv(turned)])
    assert float(drift_loss(opposite)) == pytest.approx(float(2 * (1 - angle.cos()) ** 2), abs=1e-6)


def test_contrast_tunes_the_backbone_and_leaves_its_statistics():
    detector = fyd(align_image=False, align_stages=True, contrast=True, epochs=2, lr=0.01)
    before = {name: tensor.clone() for name, tensor in detector.trunk.state_dict().items()}
    losses = run_phase(detector.learner(Runtime()), "contrast", batches(textures(8, *SIZE), 4))
    assert losses[-1]["loss"] < losses[0]["loss"]
    after = detector.trunk.state_dict()
    for name, tensor in before.items():
        if "stages" in name and ("running" in name or "num_batches" in name):
            assert torch.equal(tensor, after[name]), name
    assert not torch.equal(before["backbone.stages.0.0.weight"], after["backbone.stages.0.0.weight"])
    assert any(not torch.equal(before[n], after[n]) for n in before if "transformers" in n and "localise" in n)


def test_without_contrast_the_stages_are_aligned_by_a_frozen_backbone():
    detector = fyd(align_image=False, align_stages=True, epochs=2, lr=0.01)
    before = {name: tensor.clone() for name, tensor in detector.trunk.state_dict().items()}
    run_phase(detector.learner(Runtime()), "contrast", batches(textures(8, *SIZE), 4))
    after = detector.trunk.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("backbone."))
    assert any(not torch.equal(before[n], after[n]) for n in before if "transformers" in n and "localise" in n)


def test_the_image_transformer_is_frozen_after_its_own_phase():
    detector = fyd((64, 64), contrast=True, epochs=1, align_epochs=1)
    learner = detector.learner(Runtime())
    data = batches(textures(8, 64, 64), 4)
    run_phase(learner, "align", data)
    before = {name: tensor.clone() for name, tensor in detector.image_transformer.state_dict().items()}
    run_phase(learner, "contrast", data)
    assert all(torch.equal(before[n], t) for n, t in detector.image_transformer.state_dict().items())


def judged(images: torch.Tensor, held_out: torch.Tensor, *, bias: float = 0.0, epochs: int) -> FYD:
    """Fitted; the transformer was taught for so many epochs, or is one that turns images by what it makes of them."""
    detector = fyd((32, 32), layers=(2,), align_epochs=max(1, epochs), batch_size=16, width=16)
    if not epochs:
        torch.nn.init.normal_(detector.image_transformer.localise[-1].weight, std=bias)
    learner = detector.learner(Runtime())
    for phase in learner.phases[0 if epochs else 1 :]:
        run_phase(learner, phase.name, batches(held_out if phase.images == "held_out" else images, 16))
    return detector.eval()


def test_images_in_which_more_is_found_as_they_lie_stay_so():
    """They lie alike, and what a bad transformer adds is its own error."""
    images, held_out = outlines(64), outlines(32, seed=2)
    detector = judged(images, held_out, bias=1.0, epochs=0)
    assert not detector.aligns
    found, transform = detector.align(images)
    assert torch.equal(found, images)
    torch.testing.assert_close(transform, torch.eye(3).expand(64, 3, 3))
    # Its Gaussians are those of the images as they lie.
    plain = run_plain(images, held_out)
    torch.testing.assert_close(detector.score(held_out).image, plain.score(held_out).image, atol=1e-4, rtol=1e-4)


def run_plain(images: torch.Tensor, held_out: torch.Tensor) -> PaDiM:
    torch.manual_seed(0)
    detector = build("padim", (32, 32), **(RANDOM | {"layers": (2,), "batch_size": 16}))
    assert isinstance(detector, PaDiM)
    run_fit(detector, batches(images, 16), batches(held_out, 16))
    return detector


def test_turned_images_stay_aligned():
    rng = torch.Generator().manual_seed(1)
    images, held_out = (
        warp(outlines(count, seed), random_movements(count, rng, max_angle_deg=20, max_shift=0.1, aspect=1.0))
        for count, seed in ((64, 0), (32, 2))
    )
    detector = judged(images, held_out, epochs=20)
    assert detector.aligns


def test_what_continues_the_image_counts_for_nothing():
    """Shifted by half a side, half of the aligned frame shows reflections: its distances are those of normal images."""
    detector = fyd((64, 64))
    with torch.no_grad():
        detector.image_transformer.localise[-1].bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
    _, frames = detector.maps(*detector.align(textures(1, 64, 64)))
    inside = detector._inside(frames[0], torch.zeros(1, 1, 8, 8))[0]
    assert inside[:, :3].all()
    assert not inside[:, 4:].any()


# --- Weights and sizes


def test_a_missing_weights_file_names_the_three_ways(tmp_path):
    with pytest.raises(
        WeightsError, match=r"wide_resnet50_2 needs ImageNet weights.*Three ways: .*local file.*installed"
    ):
        fyd(backbone="wide_resnet50_2", weights=str(tmp_path / "none.safetensors"))


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"The weights must fit resnet18"):
        fyd(weights=str(tmp_path / "other.safetensors"))


def test_the_record_says_where_the_backbone_came_from():
    found = fyd().source_record()
    weights = {"weights": "random", "sha256": "", "licence": ""}
    assert found == {"name": "resnet18", **weights, "norm": "imagenet", "halvings": [2, 3]}


def test_stage_transformers_need_a_map_of_some_size():
    with pytest.raises(ConfigError, match=r"align_stages needs a stage of at least 8 positions a side"):
        fyd((32, 32), layers=(3, 4), align_stages=True)


def test_warped_images_reach_the_backbone():
    detector = fyd((32, 32), layers=(2,))
    with torch.no_grad():
        detector.image_transformer.localise[-1].bias.fill_(0.7)
        images = textures(2, 32, 32)
        aligned, transform = detector.align(images)
        maps, frames = detector.trunk(aligned, transform)
        expected = detector.trunk.backbone(warp(images, transform))
    torch.testing.assert_close(maps[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(frames[0], transform)


def test_how_an_image_is_aligned_does_not_hang_on_its_batch():
    """To the last digit: the smallest change may move a position out of the image."""
    detector = fyd((128, 128))
    assert detector.image_transformer is not None
    last = detector.image_transformer.localise[-1]
    torch.manual_seed(3)
    torch.nn.init.normal_(last.weight, std=0.5)
    images = textures(24, 128, 128)
    with torch.no_grad():
        _, together = detector.align(images)
        alone = torch.cat([detector.align(image)[1] for image in images.unsqueeze(1)])
    assert together.dtype == torch.float32
    assert (together - torch.eye(3)).abs().amax((1, 2)).min() > 0.01
    assert torch.equal(together, alone)
