"""FYD: PaDiM when nothing is aligned, losses by their definitions, alignment that aligns, and a frozen backbone's statistics."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from detectorkit import batches, build, run_fit, run_phase
from safetensors.torch import save_file
from textures import textures, with_defects

from models.backbones import Backbone
from models.detector import Runtime
from models.errors import ConfigError, WeightsError
from models.fyd import FYD, FYDLearner, agreement_loss, alignment_loss, cut_and_paste
from models.parts.stn import warp

SIZE = (64, 96)
RANDOM = {"backbone": "resnet18", "weights": "random", "layers": (2, 3), "batch_size": 4}


def fyd(size_px: tuple[int, int] = SIZE, **options: object) -> FYD:
    torch.manual_seed(0)
    detector = build("fyd", size_px, **(RANDOM | options))
    assert isinstance(detector, FYD)
    return detector


# --- Distribution


def test_without_alignment_and_contrast_it_is_padim():
    """Stages side by side on the finest grid, a random choice of dimensions, Mahalanobis: by hand, in float64."""
    detector = fyd(bank="joint", normalise="none", patch=1, dims=12, blur=0.0, contrast=False)
    images, new = textures(16, *SIZE), textures(3, *SIZE, seed=5)
    assert [phase.name for phase in detector.learner(Runtime()).phases] == ["statistics"]
    run_fit(detector, batches(images, 5), [])

    torch.manual_seed(0)
    source = Backbone("resnet18", (2, 3), "random")
    ours, theirs = (stages[0].state_dict() for stages in (detector.trunk.stages, source.stages()))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    def joined(x: torch.Tensor) -> torch.Tensor:
        first, second = source(x)
        both = torch.cat([first, F.interpolate(second, first.shape[-2:], mode="nearest")], 1)
        return both[:, detector.dims_0].flatten(2).double()

    with torch.no_grad():
        train, seen = joined(images), joined(new)
    mean = train.mean(0)
    centred = train - mean
    covariance = torch.einsum("bdp,bep->pde", centred, centred) / 15
    covariance += 0.01 * covariance.diagonal(dim1=1, dim2=2).mean() * torch.eye(12)
    away = (seen - mean).permute(0, 2, 1)
    distance = torch.einsum("bpd,pde,bpe->bp", away, torch.linalg.inv(covariance), away).sqrt()
    expected = F.interpolate(distance.view(3, 1, 16, 24), SIZE, mode="bilinear").squeeze(1).float()
    torch.testing.assert_close(detector.score(new).heatmap, expected, rtol=1e-3, atol=1e-3)


def test_dimensions_are_chosen_by_the_seed_and_kept_with_the_model():
    first, again = fyd(dims=10), fyd(dims=10)
    assert torch.equal(first.dims_1, again.dims_1)
    assert len(set(first.dims_1.tolist())) == 10
    assert {"dims_0", "dims_1"} <= first.state_dict().keys()
    assert fyd(dims=0).dims_0.tolist() == list(range(64))


def test_stages_are_levelled_by_held_out_normals():
    detector = fyd(contrast=False, blur=0.0)
    held_out = textures(8, *SIZE, seed=3)
    run_fit(detector, batches(textures(20, *SIZE), 5), batches(held_out, 4))
    with torch.no_grad():
        features, _ = detector.features(held_out)
        for x, bank, scale in zip(features, detector.gaussians, detector.scales, strict=True):
            level = scale(bank.distance(x))
            assert float(level.mean()) == pytest.approx(0, abs=1e-2)
            assert float(level.std()) == pytest.approx(1, abs=2e-2)


@pytest.mark.parametrize("bank", ["stage", "joint"])
def test_a_defect_stands_out_where_it_is(bank: str):
    detector = fyd((64, 64), backbone="efficientnet_lite0", weights="auto", layers=(2, 3, 4), bank=bank, contrast=False)
    run_fit(detector, batches(textures(24, 64, 64), 8), batches(textures(8, 64, 64, seed=4), 4))
    normal = textures(8, 64, 64, seed=1)
    bad, masks = with_defects(normal)
    found = detector.score(bad)
    assert found.image.min() > detector.score(normal).image.max()
    assert sum(bool(h[m].mean() > h[~m].mean()) for h, m in zip(found.heatmap, masks, strict=True)) == 8


def test_identity_transformers_change_nothing():
    """Aligned by the identity, in either order of carrying back, maps are those without alignment."""
    images = textures(3, *SIZE)
    plain = fyd(contrast=False).score(images).heatmap
    for unwarp in ("score", "features"):
        moved = fyd(contrast=False, align_image=True, align_stages=True, unwarp=unwarp).score(images).heatmap
        torch.testing.assert_close(moved, plain, rtol=1e-2, atol=2e-2 * float(plain.max()))


# --- Losses


def test_alignment_loss_is_the_mean_distance_of_pairs():
    images = textures(4, 8, 12)
    pairs = [
        (images[i] - images[j]).square().sum(0).add(1e-8).sqrt().mean() for i in range(4) for j in range(4) if i != j
    ]
    assert float(alignment_loss(images)) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-5)
    same = images[:1].repeat(3, 1, 1, 1).requires_grad_()
    loss = alignment_loss(same)
    assert float(loss) == pytest.approx(1e-4, rel=1e-3)
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
        transform = detector.transform(images)
    turned = torch.rad2deg(torch.atan2(transform[:, 1, 0], transform[:, 0, 0]))
    return angles - turned


def test_alignment_brings_objects_to_one_angle():
    images, angles = bars(64, 40.0)
    detector = fyd(
        (32, 32),
        layers=(2,),
        align_image=True,
        image_family="rotation",
        image_angle_deg=60.0,
        align_epochs=30,
        contrast=False,
        batch_size=16,
        stn_hidden=64,
    )
    learner = detector.learner(Runtime())
    losses = run_phase(learner, "align", batches(images, 16))
    detector.eval()
    assert losses[-1]["loss"] < 0.6 * losses[0]["loss"]
    assert float(angles.std()) > 20
    assert float(angle_after(detector, images, angles).std()) < 5


def test_half_turns_are_resolved():
    """Bars within +-30 degrees of either sense: turned to one, as their thick ends tell."""
    images, angles = bars(40, 30.0)
    other = torch.arange(40) % 3 == 0
    images = torch.where(other.view(-1, 1, 1, 1), images.flip(2, 3), images)
    angles = angles + 180 * other
    detector = fyd((32, 32), layers=(2,), flip=True, contrast=False)
    run_phase(detector.learner(Runtime()), "orient", batches(images, 16))
    left = torch.deg2rad(angle_after(detector, images, angles))
    resultant = math.hypot(float(torch.cos(left).mean()), float(torch.sin(left).mean()))
    before = torch.deg2rad(angles)
    assert math.hypot(float(torch.cos(before).mean()), float(torch.sin(before).mean())) < 0.4
    assert resultant > 0.9
    with torch.no_grad():
        shown = warp(images, detector.transform(images))
    assert float((shown - detector.turned_mean).square().mean()) < float(
        (shown.flip(2, 3) - detector.turned_mean).square().mean()
    )


def test_contrast_tunes_the_backbone_and_leaves_its_statistics():
    detector = fyd(contrast=True, align_stages=True, epochs=2, lr=0.01)
    before = {name: tensor.clone() for name, tensor in detector.trunk.state_dict().items()}
    losses = run_phase(detector.learner(Runtime()), "contrast", batches(textures(8, *SIZE), 4))
    assert losses[-1]["loss"] < losses[0]["loss"]
    after = detector.trunk.state_dict()
    for name, tensor in before.items():
        if "stages" in name and ("running" in name or "num_batches" in name):
            assert torch.equal(tensor, after[name]), name
    assert not torch.equal(before["stages.0.0.weight"], after["stages.0.0.weight"])
    assert any(not torch.equal(before[n], after[n]) for n in before if "stage_stns" in n and "localise" in n)


def test_the_image_transformer_is_frozen_after_its_own_phase():
    detector = fyd((64, 64), align_image=True, contrast=True, epochs=1, align_epochs=1)
    learner = detector.learner(Runtime())
    data = batches(textures(8, 64, 64), 4)
    run_phase(learner, "align", data)
    before = {name: tensor.clone() for name, tensor in detector.trunk.image_stn.state_dict().items()}
    run_phase(learner, "contrast", data)
    assert all(torch.equal(before[n], t) for n, t in detector.trunk.image_stn.state_dict().items())


def test_watching_keeps_the_state_before_the_collapse(monkeypatch: pytest.MonkeyPatch):
    detector = fyd(contrast=True, epochs=4, lr=0.05, selection="watch")
    learner = detector.learner(Runtime())
    assert isinstance(learner, FYDLearner)
    judged = iter([0.8, 0.9, 0.7, 0.95])
    monkeypatch.setattr(learner, "_synthetic_auroc", lambda: next(judged))
    states: list[torch.Tensor] = []
    end = learner.end_epoch
    name = "stages.0.0.weight"
    monkeypatch.setattr(learner, "end_epoch", lambda: (states.append(detector.trunk.state_dict()[name].clone()), end()))
    losses = run_phase(learner, "contrast", batches(textures(8, *SIZE), 4))
    assert torch.equal(detector.trunk.state_dict()[name], states[1])
    assert learner.stopped
    assert [step["synthetic_auroc"] for step in losses if "synthetic_auroc" in step] == pytest.approx(
        [0.8, 0.8, 0.9, 0.9]
    )
    assert losses[-1] == {}, "stopped: the last epoch trains nothing"


def test_synthetic_anomalies_are_pasted_patches_of_the_image_itself():
    images = textures(6, 48, 64)
    pasted = cut_and_paste(images, torch.Generator().manual_seed(0))
    for one, other in zip(images, pasted, strict=True):
        changed = (one != other).any(0)
        rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
        height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        assert 1 <= height <= 16
        assert 1 <= width <= 22
    assert torch.equal(pasted, cut_and_paste(images, torch.Generator().manual_seed(0)))
    detector = fyd((48, 64), selection="watch", contrast=True)
    learner = detector.learner(Runtime())
    assert isinstance(learner, FYDLearner)
    learner.start("contrast")
    for batch in batches(textures(12, 48, 64), 4):
        learner._keep(batch)
    assert 0.5 < learner._synthetic_auroc() <= 1.0


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
    assert found == {"name": "resnet18", "weights": "random", "sha256": "", "norm": "imagenet", "halvings": [2, 3]}


def test_stage_transformers_need_a_map_of_some_size():
    with pytest.raises(ConfigError, match=r"align_stages needs a stage of at least 8 positions a side"):
        fyd((32, 32), layers=(3, 4), align_stages=True)


def test_warped_images_reach_the_backbone():
    detector = fyd((32, 32), layers=(2,), align_image=True, contrast=False)
    with torch.no_grad():
        detector.trunk.image_stn.localise[-1].bias.fill_(0.7)
    images = textures(2, 32, 32)
    with torch.no_grad():
        transform = detector.transform(images)
        maps, frames = detector.trunk(images, transform)
        plain = fyd((32, 32), layers=(2,), contrast=False)
        expected, _ = plain.trunk(warp(images, transform), torch.eye(3).repeat(2, 1, 1))
    torch.testing.assert_close(maps[0], expected[0])
    assert torch.equal(frames[0], transform)
